"""What the commands that write data have in common."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from alignctl import console
from alignctl.config.bounds import MOST_PROCESSES
from alignctl.config.inputs import refuse_inside
from alignctl.corpus.manifest import is_made
from alignctl.errors import TakenError

InputsArgument = Annotated[
    list[Path],
    typer.Argument(metavar="PATH...", help="Files or folders of text or rows.", show_default=False),
]
WorkersFlag = Annotated[
    int | None,
    typer.Option(min=1, max=MOST_PROCESSES, metavar="N", help="Processes; default: one per core."),
]
KeyFlag = Annotated[str, typer.Option(metavar="KEY", help="Key of the text in each row.")]


OutputFlag = Annotated[Path, typer.Option(metavar="DIR", help="New folder to write.")]
CompressFlag = Annotated[
    Literal["none", "gz", "zst"], typer.Option("--compress", help="How files are compressed.")
]


def refuse_inside_inputs(output: Path, inputs: Sequence[Path]) -> None:
    """Refuse to write into a folder that is read."""
    refuse_inside("--output", output, [("input", path) for path in inputs])


def waiting(is_wanted: bool) -> Callable[[str], None] | None:
    """Return the function that is told what is waited for; None where nobody waits."""
    return console.say if is_wanted else None


def after_text(output: Path) -> str:
    """Return the command that goes on with text that was written."""
    given = ["--tokenizer", "DIR", "--output", f"{output}-tokens"]
    return shlex.join(["alignctl", "prepare", "tokenize", str(output), *given])


@contextmanager
def unless_made(folder: Path, recipe: Callable[[], dict[str, Any]]) -> Iterator[None]:
    """Say that a folder is complete, instead of refusing it, if it holds what the block makes."""
    try:
        yield
    except TakenError:
        if not is_made(folder, recipe()):
            raise
        console.say(f"{folder} is complete already: nothing is left to do")
