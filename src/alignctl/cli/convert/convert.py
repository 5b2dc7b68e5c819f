"""What conversions in all directions have in common."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignctl import console
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
    find_by_name,
    require_flags,
)
from alignctl.cli.lazy import PLAIN
from alignctl.config import places
from alignctl.config.inputs import not_here, refuse_inside
from alignctl.config.presets.load import convert_options

if TYPE_CHECKING:
    from alignctl.stages.convert import Direction

MEGATRON = "Megatron checkpoint, of any format and layout, or run folder to read."
"""Help for what is read."""


def make_app(direction: "Direction", text: str, load: str, *examples: str) -> typer.Typer:
    """Make the command of a conversion to Megatron.

    Args:
        direction: From what to what.
        text: What it says of itself.
        load: Help for what is read.
        *examples: Command lines.
    """
    app = typer.Typer(**PLAIN)

    @app.command(f"convert-{direction}", help=text, epilog=example(*examples))
    def convert(
        load: Annotated[Path | None, typer.Option(metavar="DIR", help=load)] = None,
        save: Annotated[
            Path | None, typer.Option(metavar="DIR", help="Megatron checkpoint to write.")
        ] = None,
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
            direction,
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

    return app


def run_conversion(
    direction: "Direction", preset: str | None, wait: bool, dry_run: bool, **flags: Any
) -> None:
    """Run a conversion, or show its options.

    Args:
        direction: From what to what.
        preset: Name or path of a preset; None: the folder that is read says what the model is.
        wait: Whether another command that is writing the same is waited for.
        dry_run: Whether to print the options and convert nothing.
        **flags: The fields of `ConvertOptions`.
    """
    if preset is not None:
        flags |= _found(direction, preset, flags)
    require_flags(flags, "load", "save")
    options = convert_options(preset, **flags)
    paths = [("--load", options.load), ("--tokenizer", options.tokenizer)]
    refuse_inside("--save", options.save, paths)
    if dry_run:
        console.note_all(not_here(paths))
        console.emit(options.model_dump_json(indent=2))
        return
    # The threads of NumPy, which is imported only now, would wait busily for what to multiply.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from alignctl.stages import convert

    on_wait = console.say if wait else None
    convert.run(direction, options, preset=preset or "NAME", on_wait=on_wait)


def _found(direction: "Direction", preset: str, flags: dict[str, Any]) -> dict[str, Path]:
    """Find what a conversion reads and writes by convention, where no flag says it.

    Raises:
        UserError: What it reads is not there.
    """
    if direction == "mg2mg":
        return {}
    if direction == "hf2mg":
        return find_by_name(
            flags,
            load=lambda: places.require(("models/{preset}",), preset, "--load"),
            save=lambda: places.place("models", f"{places.stem(preset)}-mg"),
        )
    found = find_by_name(flags, load=lambda: _run_of(preset, flags["role"]))
    load: Path = found.get("load", flags["load"])
    return found | find_by_name(flags, save=lambda: places.place("models", load.name))


def _run_of(preset: str, role: str | None) -> Path:
    if role == "reward":
        return places.require(("runs/{preset}-reward",), preset, "--load")
    return places.require_policy(preset)
