"""Nested values as tables of dotted names, one column for each run."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from alignctl.reporting.page.redaction import hide

ABSENT = "-"


@dataclass(frozen=True)
class Row:
    """One name and its value in each run, as text; `ABSENT` where there is none."""

    name: str
    values: list[str]

    @property
    def is_same(self) -> bool:
        """True if all runs have the same value."""
        return len(set(self.values)) == 1


def percent(share: float, interval: tuple[float, float] | None = None) -> str:
    """Write a share in percent, with its interval."""
    if interval is None:
        return f"{100 * share:.1f}"
    return f"{100 * share:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def number(value: float) -> str:
    """Write what was measured, in four digits; whole numbers in all of theirs."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def table(columns: Sequence[dict[str, Any]], *, is_measured: bool = False) -> list[Row]:
    """Make rows of all names that any column has, in the order in which they are first met.

    Args:
        columns: Nested values.
        is_measured: Whether floats were measured; those that were set are shown as they were.
    """
    flat = [dict(flatten(column)) for column in columns]
    names = dict.fromkeys(name for column in flat for name in column)
    return [
        Row(
            name,
            [_text(column[name], is_measured) if name in column else ABSENT for column in flat],
        )
        for name in names
    ]


def flatten(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and plain values; what looks like a key or a password is hidden."""
    for key, each in value.items():
        name = f"{prefix}{key}"
        shown = hide(name, each)
        if shown is each and isinstance(each, dict) and each:
            yield from flatten(each, f"{name}.")
        else:
            yield name, shown


def _text(value: Any, is_measured: bool) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return "none"
    if isinstance(value, float):
        return number(value) if is_measured else f"{value:.15g}"
    if isinstance(value, list):
        return ", ".join(str(hide("", each)) for each in value) or "none"
    return json.dumps(value)
