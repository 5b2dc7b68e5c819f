"""Compare two models tensor by tensor, whatever their formats and layouts.

Exit code 0: every bit is the same; 1: the largest differences are printed.
"""

from pathlib import Path
from typing import Annotated

import typer

from alignctl.cli.flags import example
from alignctl.cli.lazy import PLAIN
from alignctl.reporting.progress.alive import alive
from alignctl.stages import verify

app = typer.Typer(**PLAIN)


@app.command(
    "verify",
    help=__doc__,
    epilog=example("alignctl verify models/llama2-7b models/llama2-7b-mg"),
)
def _verify(
    first: Annotated[Path, typer.Argument(metavar="A", help="A model, in any format.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
) -> None:
    with alive("verify"):
        is_same = verify.run(first, second)
    raise typer.Exit(0 if is_same else 1)
