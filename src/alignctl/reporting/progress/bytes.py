"""Progress of work measured in bytes: a bar on a terminal, one line at the end elsewhere."""

import time
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
        self._started = time.perf_counter()
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
        self._bar.advance(self._task, num_bytes)

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
            seconds = time.perf_counter() - self._started
            speed = self._done / 1e9 / max(seconds, 1e-9)
            size = f"{self._done / 1e9:.2f} GB"
            console.say(f"{self._verb}: {size} in {seconds:.1f} s ({speed:.2f} GB/s)")
