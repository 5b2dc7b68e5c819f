"""Two machines on one: network namespaces joined by a cable, which see each other and no one else.

They vanish with the processes that hold them, and need no root where the kernel lets users make
namespaces of their own.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.commands import ALIGNCTL, Outcome

_SECONDS = 300


@dataclass(frozen=True)
class Node:
    """One of the machines: its address, and the words in front of a command that runs there."""

    address: str
    prefix: tuple[str, ...]

    def start(self, *arguments: object, env: dict[str, str] | None = None) -> "Process":
        """Starts `alignctl ...` there."""
        return subprocess.Popen(
            [*self.prefix, ALIGNCTL, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )


Process = subprocess.Popen[str]


def finish(process: Process) -> Outcome:
    """Waits for a command to end."""
    out, err = process.communicate(timeout=_SECONDS)
    return Outcome(process.returncode, out, err)


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """Makes the machines.

    Raises:
        subprocess.CalledProcessError: The kernel allows no namespaces.
    """
    with contextlib.ExitStack() as stack:
        first = _hold(stack, ["unshare", "--user", "--map-root-user", "--net"])
        into_first = _into(first)
        second = _hold(stack, [*into_first, "unshare", "--net"])
        into_second = _into(second)
        cable = ["ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable"]
        _run(*into_first, *cable, "netns", str(second))
        nodes = []
        for number, prefix in enumerate((into_first, into_second)):
            address = f"10.77.0.{number + 1}"
            _run(*prefix, "ip", "address", "add", f"{address}/24", "dev", "cable")
            _run(*prefix, "ip", "link", "set", "cable", "up")
            _run(*prefix, "ip", "link", "set", "lo", "up")
            nodes.append(Node(address, tuple(prefix)))
        yield nodes[0], nodes[1]


def _hold(stack: contextlib.ExitStack, words: list[str]) -> int:
    """Starts a process that holds a namespace; returns its id."""
    process = subprocess.Popen([*words, "sleep", "infinity"], stderr=subprocess.PIPE, text=True)

    def release() -> None:
        process.kill()
        process.communicate()

    stack.callback(release)
    while Path(f"/proc/{process.pid}/comm").read_text().strip() != "sleep":
        if process.poll() is not None:
            _, words_of_it = process.communicate()
            raise subprocess.CalledProcessError(process.returncode, words, stderr=words_of_it)
        time.sleep(0.01)
    return process.pid


def _into(process: int) -> list[str]:
    return ["nsenter", "--target", str(process), "--user", "--net", "--preserve-credentials"]


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)
