"""What conversions in all directions have in common."""

import os
from typing import TYPE_CHECKING, Any

from alignctl import console
from alignctl.config.inputs import not_here, refuse_inside
from alignctl.config.presets.load import convert_options

if TYPE_CHECKING:
    from alignctl.stages.convert import Direction

MEGATRON = "Megatron checkpoint, of any format and layout, or run folder to read."
"""Help for what is read."""


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

    convert.run(direction, options, on_wait=console.say if wait else None)
