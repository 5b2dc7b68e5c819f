"""Progress of work measured in bytes: a bar on a terminal, a line now and then elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from alignctl import console
from alignctl.reporting.progress.stopwatch import Stopwatch

_UNITS = {"TB": 1e12, "GB": 1e9, "MB": 1e6, "KB": 1e3}


def size(num_bytes: float) -> str:
    """Write a number of bytes in four digits, in the largest unit of which there is one."""
    for unit, factor in _UNITS.items():
        if num_bytes >= factor:
            return f"{num_bytes / factor:#.4g} {unit}".replace(". ", " ")
    return f"{num_bytes:.0f} B"


class BytesProgress:
    """Counts bytes towards a total; use it as a context manager."""

    def __init__(self, verb: str, total: int) -> None:
        """Start at zero.

        Args:
            verb: What is being done, for the label.
            total: Bytes to do.
        """
        self._verb = verb
        self._total = total
        self._done = 0
        self._watch = Stopwatch()
        terminal = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=terminal,
            transient=True,
            disable=not terminal.is_terminal,
        )
        self._task = self._bar.add_task(verb, total=total)

    def advance(self, num_bytes: int) -> None:
        """Count bytes that are done."""
        self._done += num_bytes
        if not self._bar.disable:
            self._bar.advance(self._task, num_bytes)
            console.note_sign()
        elif self._watch.take_turn():
            console.say(f"{self._verb}: {size(self._done)} of {size(self._total)}")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        if error is None:
            seconds = self._watch.seconds
            speed = size(self._done / seconds)
            console.say(f"{self._verb}: {size(self._done)} in {seconds:.1f} s ({speed}/s)")
