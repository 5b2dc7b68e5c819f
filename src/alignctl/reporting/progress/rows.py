"""Progress of work that is measured in rows: a line every few seconds."""

from alignctl import console
from alignctl.reporting.progress.stopwatch import Stopwatch


class RowsProgress:
    """Says how many rows are done and how long the rest takes; call it after every batch."""

    def __init__(self, verb: str) -> None:
        """Start the clock.

        Args:
            verb: What is being done, as "tokenising".
        """
        self._verb = verb
        self._watch = Stopwatch()

    def __call__(self, done: int, total: int | None) -> None:
        """Note the rows done so far; the total is None where nobody knows it."""
        if not self._watch.take_turn():
            return
        if total is None:
            console.say(f"{self._verb}: {done:,} rows")
            return
        left = self._watch.seconds / done * (total - done)
        console.say(f"{self._verb}: {done:,} of {total:,} rows, {left:.0f} s left")
