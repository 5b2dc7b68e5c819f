"""What the commands that measure models have in common."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from alignctl.errors import UserError

ModelsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL... [key=value...]",
        help="Models (Hugging Face, Megatron, or runs), and knobs such as max_new_tokens=256.",
    ),
]
EvalOutputFlag = Annotated[
    Path, typer.Option(metavar="DIR", help="Folder for the answers and the result.")
]
JSONFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON, not a table.")]

_OVERRIDE = re.compile(r"[a-z_][a-z0-9_.]*=")


def split_models(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Separate models from overrides, which a command line holds in any order.

    Raises:
        UserError: There is no model, or one is there twice.
    """
    overrides = [each for each in arguments if _OVERRIDE.match(each) and not Path(each).exists()]
    models = [Path(each) for each in arguments if each not in overrides]
    if not models:
        raise UserError("no model was given", "name one or more, such as runs/sft")
    for model in models:
        if models.count(model) > 1:
            raise UserError(f"{model}: this model is there twice")
    return models, overrides
