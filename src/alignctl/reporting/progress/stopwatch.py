"""The clock of work that says every few seconds how far it is."""

import time

_SECONDS_BETWEEN_LINES = 5.0


class Stopwatch:
    """Measures how long work takes, and says when its next line of progress is due."""

    def __init__(self) -> None:
        """Start at zero."""
        self._started = self._last_line = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time since the start; more than zero, to be divided by."""
        return max(time.monotonic() - self._started, 1e-9)

    def take_turn(self) -> bool:
        """Tell whether a line is due, and if so start to wait for the next one."""
        now = time.monotonic()
        if now - self._last_line < _SECONDS_BETWEEN_LINES:
            return False
        self._last_line = now
        return True
