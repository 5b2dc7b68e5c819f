"""The commands about checkpoints: conversions, and the comparison of two."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignctl import console
from alignctl.flags import (
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

if TYPE_CHECKING:
    from alignctl.stages.convert import Direction

_MEGATRON = "Megatron checkpoint, of any format and layout, or run folder to read."


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.command(
        "convert-hf2mg",
        epilog=example(
            "alignctl convert-hf2mg --preset llama2-7b --load models/llama2-7b --save models/mg",
            "alignctl convert-hf2mg --load models/llama2-7b --save models/old --format legacy "
            "--tp 4",
        ),
    )(convert_hf2mg)
    app.command(
        "convert-mg2hf",
        epilog=example(
            "alignctl convert-mg2hf --load runs/llama2-7b-sft --save models/my-model",
            "alignctl convert-mg2hf --load runs/llama2-7b-lora --save models/my-adapter "
            "--adapter-only",
        ),
    )(convert_mg2hf)
    app.command(
        "convert-mg2mg",
        epilog=example(
            "alignctl convert-mg2mg --load models/old --save models/mg",
            "alignctl convert-mg2mg --load models/mg --save models/old --format legacy --tp 8 "
            "--pp 4",
        ),
    )(convert_mg2mg)
    app.command("verify", epilog=example("alignctl verify models/llama2-7b models/llama2-7b-mg"))(
        verify
    )


def convert_hf2mg(
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
    """Turn a Hugging Face model into a Megatron checkpoint."""
    _convert(
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


def convert_mg2hf(
    load: Annotated[Path, typer.Option(metavar="DIR", help=_MEGATRON)],
    save: Annotated[Path, typer.Option(metavar="DIR", help="Hugging Face folder to write.")],
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
    verify: VerifyFlag = "full",
    wait: WaitFlag = False,
    dry_run: DryRunFlag = False,
) -> None:
    """Turn a Megatron checkpoint into a Hugging Face model."""
    _convert(
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
        verify=verify,
    )


def convert_mg2mg(
    load: Annotated[Path, typer.Option(metavar="DIR", help=_MEGATRON)],
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
    """Write a Megatron checkpoint in another format or layout.

    Stages read any layout by themselves; this is for other programs.
    """
    _convert(
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


def _convert(
    direction: "Direction", preset: str | None, wait: bool, dry_run: bool, **flags: Any
) -> None:
    from alignctl.config.inputs import not_here, refuse_inside
    from alignctl.config.load import convert_options

    options = convert_options(preset, **flags)
    paths = [("--load", options.load), ("--tokenizer", options.tokenizer)]
    refuse_inside("--save", options.save, paths)
    if dry_run:
        console.note_all(not_here(paths))
        console.emit(options.model_dump_json(indent=2))
        return
    from alignctl.stages import convert as stage

    stage.run(direction, options, on_wait=console.say if wait else None)


def verify(
    first: Annotated[Path, typer.Argument(metavar="A", help="A model, in any format.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
) -> None:
    """Compare two models tensor by tensor, whatever their formats and layouts.

    Exit code 0: every bit is the same; 1: the largest differences are printed.
    """
    from alignctl.stages import verify as stage

    raise typer.Exit(0 if stage.run(first, second) else 1)
