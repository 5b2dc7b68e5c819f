"""Write one page about runs: curves, evaluations, answers, settings, environment.

It needs no network, and shows runs that are running or were killed as well as finished ones.
"""

from pathlib import Path
from typing import Annotated

import typer

from alignctl.cli.flags import example
from alignctl.cli.lazy import PLAIN
from alignctl.config.bounds import MOST
from alignctl.stages import report

app = typer.Typer(**PLAIN)


@app.command(
    "report",
    help=__doc__,
    epilog=example(
        "alignctl report runs/llama2-7b-sft",
        "alignctl report runs/llama2-7b-dpo runs/llama2-7b-rlhf --output report.html --png plots",
    ),
)
def _report(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Run folders; also folders that alignctl eval wrote, and .jsonl files of answers.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The page; default: report.html in the run folder."),
    ] = None,
    png: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Save the charts as pictures too.")
    ] = None,
    smooth: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST,
            metavar="N",
            help="Measurements that a line is the mean of; default: a 25th of the run; 1: none.",
        ),
    ] = None,
) -> None:
    report.run(paths, output=output, png=png, window=smooth)
