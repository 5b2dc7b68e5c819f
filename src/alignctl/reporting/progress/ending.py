"""What a command says when it has done its work: what, how long, where, and what comes next."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from alignctl import console
from alignctl.reporting.progress.alive import alive
from alignctl.reporting.progress.run import duration
from alignctl.reporting.progress.stopwatch import Stopwatch


def tell(did: str, seconds: float, where: Path, following: str) -> None:
    """Say what a command has done, and which one is usual after it.

    Args:
        did: What was done.
        seconds: How long it took.
        where: What was written.
        following: The next command, as it is to be typed.
    """
    console.say(f"{did} in {duration(seconds)}: {where}")
    console.say(f"next: {following}")


@contextmanager
def finishing(
    name: str, did: str, where: Path, following: str | Callable[[], str]
) -> Iterator[None]:
    """Give signs of life while a command does its work, and then say what it has done.

    Args:
        name: The command.
        did: What it will have done, as a participle.
        where: What it writes.
        following: The next command; or what finds it, when all is done.
    """
    watch = Stopwatch()
    with alive(name):
        yield
    words = following if isinstance(following, str) else following()
    tell(f"{name}: {did}", watch.seconds, where, words)
