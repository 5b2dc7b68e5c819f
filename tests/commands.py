"""The command line as a user starts it, and processes as an operating system ends them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ALIGNCTL = str(Path(sys.executable).with_name("alignctl"))
_SECONDS = 540


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """The words, for the message of an assertion."""
        return f"exit {self.code}\n{self.err}"


def alignctl(*arguments: object, prefix: Sequence[str] = ()) -> Outcome:
    """Runs a command to its end in a process of its own.

    Args:
        *arguments: The subcommand and what follows it.
        prefix: Words in front, such as those of a program that changes what it may do.
    """
    done = subprocess.run(
        [*prefix, ALIGNCTL, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def start(*arguments: object) -> "subprocess.Popen[str]":
    """Starts a command."""
    return subprocess.Popen(
        [ALIGNCTL, *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: "subprocess.Popen[str]") -> Outcome:
    """Waits for a command that was started."""
    _, err = process.communicate(timeout=_SECONDS)
    return Outcome(process.returncode, "", err)


def wait_until(condition: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    """Looks again and again; a process that ends before is a failure.

    The pause is short enough to see what lasts a few milliseconds.
    """
    deadline = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        assert process.poll() is None, f"ended too early: {finish(process).text}"
        time.sleep(0.0005)


def kill_tree(process: "subprocess.Popen[str]", below: Sequence[int] | None = None) -> None:
    """`kill -9` for a process and all below it, as a machine that goes down would.

    Args:
        process: The process; one that has ended is left alone.
        below: Its descendants, when they were found beforehand: so the kill comes at once.
    """
    if process.poll() is not None:
        return
    everyone = descendants(process.pid) if below is None else below
    for pid in [*reversed(everyone), process.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while left := [pid for pid in everyone if is_alive(pid)]:
        assert time.monotonic() < deadline, f"still alive: {left}"
        time.sleep(0.01)


def descendants(pid: int) -> list[int]:
    """The processes below one, parents before their children."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in map(int, children.read_text().split()):
                found += [child, *descendants(child)]
    return found


def is_alive(pid: int) -> bool:
    """Whether a process still runs; one that ended and was not collected yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")
