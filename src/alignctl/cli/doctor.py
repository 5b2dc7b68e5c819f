"""Say what this machine lacks, and what mends it."""

import typer

from alignctl import console
from alignctl.cli.flags import example
from alignctl.cli.lazy import PLAIN
from alignctl.doctor.examination import examine
from alignctl.reporting.progress.alive import alive

app = typer.Typer(**PLAIN)


@app.command("doctor", help=__doc__, epilog=example("alignctl doctor"))
def _doctor() -> None:
    with alive("doctor"):
        text, is_usable = examine()
    console.emit(text)
    raise typer.Exit(0 if is_usable else 1)
