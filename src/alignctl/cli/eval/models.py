"""What the commands that measure models have in common."""

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from alignctl import console
from alignctl.config import places
from alignctl.errors import UserError

_MODELS = typer.Argument(
    metavar="MODEL... [key=value...]",
    help="Models (Hugging Face, Megatron, or runs), and knobs such as max_new_tokens=256.",
)
ModelsArgument = Annotated[list[str], _MODELS]
MaybeModelsArgument = Annotated[list[str] | None, _MODELS]
_OUTPUT = typer.Option(metavar="DIR", help="Folder for the answers and the result.")
EvalOutputFlag = Annotated[Path, _OUTPUT]
MaybeEvalOutputFlag = Annotated[Path | None, _OUTPUT]
JSONFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON, not a table.")]

_OVERRIDE = re.compile(r"[a-z_][a-z0-9_.]*=")


def measure(name: str, output: Path, run: Callable[[], None]) -> None:
    """Run an evaluation, with signs of life, and say where its result is.

    Args:
        name: The command.
        output: What it writes.
        run: Measures the models.
    """
    from alignctl.reporting.progress.ending import finishing  # not in the way of a typo

    with finishing(name, "measured", output, shlex.join(["alignctl", "report", str(output)])):
        run()


def split_models(
    arguments: Sequence[str] | None, preset: str | None = None
) -> tuple[list[Path], list[str]]:
    """Separate models from overrides, which a command line holds in any order.

    Args:
        arguments: Both.
        preset: A preset; where no model is given, it is the one that its policy was made last.

    Raises:
        UserError: There is no model, or one is there twice.
    """
    arguments = arguments or ()
    overrides = [each for each in arguments if _OVERRIDE.match(each) and not Path(each).exists()]
    models = [Path(each) for each in arguments if each not in overrides]
    if not models and preset:
        models = [places.exported(places.require_policy(preset))]
        console.say(f"{models[0]}, by its name")
    if not models:
        raise UserError("no model was given", "name one or more, such as runs/sft")
    for model in models:
        if models.count(model) > 1:
            raise UserError(f"{model}: this model is there twice")
    return models, overrides
