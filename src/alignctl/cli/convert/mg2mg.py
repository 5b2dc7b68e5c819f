"""Write a Megatron checkpoint in another format or layout.

Stages read any layout by themselves; this is for other programs.
"""

from pathlib import Path
from typing import Annotated

import typer

from alignctl.cli.convert.convert import MEGATRON, run_conversion
from alignctl.cli.flags import (
    DryRunFlag,
    DtypeFlag,
    FormatFlag,
    MaybePresetFlag,
    PPFlag,
    RoleFlag,
    TokenizerFlag,
    TPFlag,
    VerifyFlag,
    WaitFlag,
    example,
)
from alignctl.cli.lazy import PLAIN

app = typer.Typer(**PLAIN)


@app.command(
    "convert-mg2mg",
    help=__doc__,
    epilog=example(
        "alignctl convert-mg2mg --load models/old --save models/mg",
        "alignctl convert-mg2mg --load models/mg --save models/old --format legacy --tp 8 --pp 4",
    ),
)
def _convert(
    load: Annotated[Path, typer.Option(metavar="DIR", help=MEGATRON)],
    save: Annotated[Path, typer.Option(metavar="DIR", help="Megatron checkpoint to write.")],
    preset: MaybePresetFlag = None,
    tp: TPFlag = None,
    pp: PPFlag = None,
    format: FormatFlag = "mcore",
    role: RoleFlag = None,
    dtype: DtypeFlag = "keep",
    tokenizer: TokenizerFlag = None,
    verify: VerifyFlag = "full",
    wait: WaitFlag = False,
    dry_run: DryRunFlag = False,
) -> None:
    run_conversion(
        "mg2mg",
        preset,
        wait,
        dry_run,
        load=load,
        save=save,
        tp=tp,
        pp=pp,
        format=format,
        role=role,
        dtype=dtype,
        tokenizer=tokenizer,
        verify=verify,
    )
