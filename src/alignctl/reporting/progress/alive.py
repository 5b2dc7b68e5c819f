"""A sign of life while nothing else is said: nobody should wonder whether a command hangs."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from alignctl import console
from alignctl.reporting.progress.stopwatch import Stopwatch

STILL_SECONDS = 8.0
"""How long nothing is said before a sign is given."""

FIRST_SECONDS = 2.0
"""The same for the first sign of a program."""


def _limit() -> float:
    return STILL_SECONDS if console.has_spoken() else min(FIRST_SECONDS, STILL_SECONDS)


@contextmanager
def alive(what: str) -> Iterator[None]:
    """Say now and then what is being done, if the block says nothing by itself.

    No process may be started by `fork` inside of the block: a thread waits in it.

    Args:
        what: What is being done, such as "checking the inputs".
    """
    watch, is_over = Stopwatch(), threading.Event()

    def wait() -> None:
        while not is_over.wait(max(0.05, _limit() - console.still_seconds())):
            if console.still_seconds() >= _limit():
                console.say(f"{what}: {watch.seconds:.0f} s so far")

    thread = threading.Thread(target=wait, name="alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
