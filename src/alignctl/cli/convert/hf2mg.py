"""Turn a Hugging Face model into a Megatron checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from alignctl.cli.convert.convert import run_conversion
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
    "convert-hf2mg",
    help=__doc__,
    epilog=example(
        "alignctl convert-hf2mg --preset llama2-7b --load models/llama2-7b --save models/mg",
        "alignctl convert-hf2mg --load models/llama2-7b --save models/old --format legacy --tp 4",
    ),
)
def _convert(
    load: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Hugging Face folder to read, or a DeepSpeed checkpoint of one."
        ),
    ],
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
        "hf2mg",
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
