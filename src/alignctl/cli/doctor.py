"""Say what this machine lacks, and what mends it."""

import typer

from alignctl import console
from alignctl.cli.flags import example
from alignctl.cli.lazy import PLAIN
from alignctl.doctor.examination import examine

app = typer.Typer(**PLAIN)


@app.command("doctor", help=__doc__, epilog=example("alignctl doctor"))
def _doctor() -> None:
    text, is_usable = examine()
    console.emit(text)
    raise typer.Exit(0 if is_usable else 1)
