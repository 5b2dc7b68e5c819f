"""A sign of life while nothing else is said: nobody should wonder whether a command hangs."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from alignctl import console
from alignctl.reporting.progress.stopwatch import Stopwatch

STILL_SECONDS = 8.0
"""How long nothing is said before a sign is given."""


@contextmanager
def alive(what: str) -> Iterator[None]:
    """Say now and then what is being done, if the block says nothing by itself.

    No process may be started by `fork` inside of the block: a thread waits in it.

    Args:
        what: What is being done, such as "checking the inputs".
    """
    watch, is_over = Stopwatch(), threading.Event()

    def wait() -> None:
        while not is_over.wait(max(0.1, STILL_SECONDS - console.still_seconds())):
            if console.still_seconds() >= STILL_SECONDS:
                console.say(f"{what}: {watch.seconds:.0f} s so far")

    thread = threading.Thread(target=wait, name="alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
