"""Progress of work that is measured in rows: a line every few seconds."""

import time

from alignctl import console

_SECONDS_BETWEEN_LINES = 5.0


class RowsProgress:
    """Says how many rows are done and how long the rest takes; call it after every batch."""

    def __init__(self, verb: str) -> None:
        """Starts the clock.

        Args:
            verb: What is being done, as "tokenising".
        """
        self._verb = verb
        self._started = self._spoken = time.monotonic()

    def __call__(self, done: int, total: int | None) -> None:
        """Takes note of the rows done so far; the total is None where nobody knows it."""
        now = time.monotonic()
        if now - self._spoken < _SECONDS_BETWEEN_LINES:
            return
        self._spoken = now
        if total is None:
            console.say(f"{self._verb}: {done:,} rows")
            return
        left = (now - self._started) / done * (total - done)
        console.say(f"{self._verb}: {done:,} of {total:,} rows, {left:.0f} s left")
