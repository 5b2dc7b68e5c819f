"""Things done one by one, on stderr: a live bar on a terminal, else a line now and then."""

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from alignctl.reporting.progress import duration

_SECONDS_BETWEEN_LINES = 15.0


class Tally:
    """How many of how many, tokens per second, and the time left; a context manager."""

    def __init__(self, what: str, total: int, stream: TextIO | None = None) -> None:
        """Shows nothing yet.

        Args:
            what: Such as "judging".
            total: How many there are.
            stream: Where to write; by default stderr.
        """
        self._what = what
        self._total = total
        self._done = 0
        self._tokens = 0
        self._stream = stream or sys.stderr
        console = Console(file=self._stream)
        self._bar: Progress | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            self._bar = Progress(
                TextColumn("{task.description} {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[measures]}", markup=False),
                TimeRemainingColumn(),
                console=console,
            )

    def add(self, tokens: int = 0) -> None:
        """Counts one more."""
        self._done += 1
        self._tokens += tokens
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, measures=self._measures())
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._write_line()

    def _measures(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = f"{self._done / seconds:.2f}/s"
        return f"{rate}  tokens/s {self._tokens / seconds:,.0f}" if self._tokens else rate

    def _write_line(self) -> None:
        self._last_line = time.monotonic()
        took = self._last_line - self._start
        left = took / self._done * (self._total - self._done) if self._done else None
        self._stream.write(
            f"{self._what} {self._done}/{self._total}  {self._measures()}  eta {duration(left)}\n"
        )
        self._stream.flush()

    def __enter__(self) -> Self:
        self._start = self._last_line = time.monotonic()
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=self._total, measures="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        else:
            self._write_line()
