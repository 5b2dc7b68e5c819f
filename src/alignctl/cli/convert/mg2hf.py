"""Turn a Megatron checkpoint into a Hugging Face model."""

from pathlib import Path
from typing import Annotated

import typer

from alignctl.cli.convert.convert import MEGATRON, run_conversion
from alignctl.cli.flags import (
    DryRunFlag,
    DtypeFlag,
    MaybePresetFlag,
    RoleFlag,
    TokenizerFlag,
    VerifyFlag,
    WaitFlag,
    example,
)
from alignctl.cli.lazy import PLAIN

app = typer.Typer(**PLAIN)


@app.command(
    "convert-mg2hf",
    help=__doc__,
    epilog=example(
        "alignctl convert-mg2hf --load runs/llama2-7b-sft --save models/my-model",
        "alignctl convert-mg2hf --load runs/llama2-7b-lora --save models/my-adapter \\",
        "  --adapter-only --base meta-llama/Llama-2-7b-hf",
    ),
)
def _convert(
    load: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help=f"{MEGATRON} Default: --preset's run that ended last."),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Hugging Face folder to write; default, with --preset: models/RUN."
        ),
    ] = None,
    preset: MaybePresetFlag = None,
    role: RoleFlag = None,
    dtype: DtypeFlag = "keep",
    tokenizer: TokenizerFlag = None,
    max_shard_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Largest weight file, such as 5GB or 500MB.")
    ] = "5GB",
    adapter_only: Annotated[
        bool,
        typer.Option(
            "--adapter-only", help="Of a LoRA run: write its adapters, as PEFT has them, unmerged."
        ),
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the base model, such as meta-llama/Llama-2-7b-hf, for the model card, "
            "and for PEFT with --adapter-only; default: its path.",
        ),
    ] = None,
    verify: VerifyFlag = "full",
    wait: WaitFlag = False,
    dry_run: DryRunFlag = False,
) -> None:
    run_conversion(
        "mg2hf",
        preset,
        wait,
        dry_run,
        load=load,
        save=save,
        role=role,
        dtype=dtype,
        tokenizer=tokenizer,
        max_shard_size=max_shard_size,
        adapter_only=adapter_only,
        base=base,
        verify=verify,
    )
