"""What an evaluation found: a table for people, and a file for programs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignctl import atomic
from alignctl.errors import UserError
from alignctl.reporting.page.evaluations import FILE
from alignctl.reporting.page.recorded_run import short_names


def names_of(models: Sequence[Path]) -> list[str]:
    """Name each model by as many of the last parts of its path as tell it from the others."""
    places = [model.resolve() for model in models]
    if twice := [
        model for model, place in zip(models, places, strict=True) if places.count(place) > 1
    ]:
        raise UserError(f"{twice[0]}: the same model is there twice")
    return short_names(places, "-")


def table(corner: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """Format a table as text: the first column to the left, the others to the right.

    Args:
        corner: What the names of the rows are.
        columns: Names of the columns, such as models.
        rows: Name to a cell for each column.
    """
    lines = [[corner, *columns], *([name, *cells] for name, cells in rows.items())]
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        ).rstrip()
        for line in lines
    )


def make_folder(folder: Path) -> None:
    """Make the folder of an evaluation, which may be there.

    Raises:
        UserError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be made: {error.strerror}") from error


def write(folder: Path, result: Mapping[str, Any]) -> str:
    """Write the result whole or not at all; return it as the JSON text that it is."""
    text = json.dumps(result, indent=2)
    atomic.write_text(folder / FILE, text + "\n")
    return text
