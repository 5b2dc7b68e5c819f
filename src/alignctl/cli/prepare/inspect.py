"""Show what an indexed dataset holds."""

from pathlib import Path
from typing import Annotated

import typer

from alignctl import console
from alignctl.cli.flags import example
from alignctl.cli.lazy import PLAIN
from alignctl.config.bounds import MOST
from alignctl.corpus.inspection import describe
from alignctl.corpus.manifest import prefix_of
from alignctl.data.tokenizer import load_tokenizer
from alignctl.reporting.progress.alive import alive

app = typer.Typer(**PLAIN)


@app.command(
    "inspect",
    help=__doc__,
    epilog=example("alignctl prepare inspect data/wiki --tokenizer models/bloom-7b"),
)
def _inspect(
    dataset: Annotated[
        Path, typer.Argument(metavar="NAME", help="Dataset: its path without .bin and .idx.")
    ],
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Tokenizer to decode samples with; default: show ids."),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=0, max=MOST, metavar="N", help="Documents to show.")
    ] = 3,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare the checksums of both files.")
    ] = False,
) -> None:
    with alive("prepare inspect"):
        loaded = load_tokenizer(tokenizer) if tokenizer else None
        text = describe(prefix_of(dataset), loaded, samples, verify)
    console.emit(text)
