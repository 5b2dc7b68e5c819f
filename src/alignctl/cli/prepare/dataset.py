"""What the commands of well-known data sets have in common."""

import json
import shlex
from pathlib import Path
from textwrap import shorten
from typing import Annotated

import typer

from alignctl import console
from alignctl.cli.flags import WaitFlag, example
from alignctl.cli.lazy import PLAIN
from alignctl.cli.prepare.common import OutputFlag, refuse_inside_inputs, unless_made, waiting
from alignctl.reporting.preview import visible
from alignctl.reporting.progress.ending import finishing
from alignctl.sources import preparation
from alignctl.sources.download import locate
from alignctl.sources.formats import FORMATS, Name

_STAGES = {"sft": "sft", "reward": "reward", "alignment": "dpo", "math": "grpo"}
"""The stage that learns from each kind of rows; the likeliest first."""


def following(output: Path) -> str:
    """Return the command that learns from what was written."""
    kind = next(kind for kind in _STAGES if (output / kind).is_dir())
    words = ["alignctl", _STAGES[kind], "--preset", "NAME", "--data", str(output / kind)]
    return shlex.join(words)


def make_app(name: Name, text: str, sample: str) -> typer.Typer:
    """Make the command of a data set.

    Args:
        name: The data set.
        text: What is written of it.
        sample: A path, for the example.
    """
    app = typer.Typer(**PLAIN)

    @app.command(
        name,
        help=text,
        epilog=example(f"alignctl prepare {name} {sample} --output data/{name}"),
    )
    def prepare(
        inputs: Annotated[
            list[str],
            typer.Argument(
                metavar="PATH...",
                help="Files or folders as downloaded, or a name on the Hugging Face hub.",
                show_default=False,
            ),
        ],
        output: OutputFlag,
        dev_fraction: Annotated[
            float,
            typer.Option(
                min=0.0, max=0.9, help="Share held out, where the download has no test files."
            ),
        ] = 0.05,
        license: Annotated[
            str | None,
            typer.Option(metavar="NAME", help="Licence; default: what the download's card says."),
        ] = None,
        wait: WaitFlag = False,
    ) -> None:
        paths = tuple(locate(given, FORMATS[name].hub) for given in inputs)
        refuse_inside_inputs(output, paths)
        options = preparation.Options(name, paths, output, dev_fraction, license)
        ending = finishing(f"prepare {name}", "written", output, lambda: following(output))
        with ending, unless_made(output, lambda: preparation.recipe(options)):
            outcome = preparation.prepare(options, waiting(wait))
            for kind, row in outcome.preview.items():
                text = visible(json.dumps(row, ensure_ascii=False))
                console.emit(f"{kind}/train.jsonl: {shorten(text, 400, placeholder=' ...')}")
            console.say(f"{output}: {outcome.describe()}")
            console.say(f"license: {outcome.license or 'unknown; name it with --license'}")

    return app
