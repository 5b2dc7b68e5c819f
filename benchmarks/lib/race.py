"""Runs contenders in processes of their own, and measures them from outside."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Step:
    """One optimizer step, as the contender reports it.

    Attributes:
        time: When it ended, in seconds.
        tokens: Real input tokens, over all ranks.
        loss: Mean over its learned tokens.
    """

    time: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Run:
    """What one run of one contender showed.

    Attributes:
        tokens_per_second: Real input tokens over the steps on the clock.
        core_seconds: Processor time of all ranks per 1,000 of these tokens. On a machine that
            others use too, it says more than the clock.
        memory_sum: Peak resident memory summed over ranks, in bytes.
        memory_max: That of the largest rank.
        first_loss: Loss of the very first step: the weights everybody starts from.
        last_loss: Loss of the very last step.
    """

    tokens_per_second: float
    core_seconds: float
    memory_sum: int
    memory_max: int
    first_loss: float
    last_loss: float


@dataclass(frozen=True)
class Contender:
    """A trainer and the way it uses the machine.

    Attributes:
        name: What the table calls it.
        processes: Ranks, and threads of each.
        command: The command that trains, given a new folder to write to.
        environ: Variables to set.
        read: The steps done so far, from that folder.
    """

    name: str
    processes: tuple[int, int]
    command: Callable[[Path], list[str]]
    environ: Mapping[str, str]
    read: Callable[[Path], list[Step]]


def race(contender: Contender, folder: Path, *, warm_up: int, steps: int) -> Run:
    """Run a contender once.

    Memory is read until the last step has ended: what a trainer saves afterwards is not compared.

    Raises:
        RuntimeError: It failed; the message holds the end of its output.
    """
    folder.mkdir()
    log = folder / "output.log"
    environ = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    memory: dict[int, int] = {}
    started = processor = 0.0
    with log.open("wb") as output:
        process = subprocess.Popen(
            contender.command(folder),
            env={**environ, **contender.environ},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        while process.poll() is None:
            time.sleep(_POLL_SECONDS)
            if (so_far := len(contender.read(folder))) < warm_up + steps:
                ranks = _leaves(process.pid)
                # The high-water mark only rises, so the last look is the one that counts.
                memory = {pid: peak for pid in ranks if (peak := _peak_memory(pid))}
                processor = sum(map(_processor_seconds, ranks))
                if so_far < warm_up:
                    started = processor
    done = contender.read(folder)
    if process.returncode or len(done) < warm_up + steps:
        tail = log.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise RuntimeError(f"{contender.name} ended with {process.returncode}:\n{tail}")
    timed = done[warm_up:]
    tokens = sum(step.tokens for step in timed)
    return Run(
        tokens_per_second=tokens / (timed[-1].time - done[warm_up - 1].time),
        core_seconds=1000 * (processor - started) / tokens,
        memory_sum=sum(memory.values()),
        memory_max=max(memory.values()),
        first_loss=done[0].loss,
        last_loss=timed[-1].loss,
    )


def _leaves(pid: int) -> list[int]:
    """Find the processes below (or this one) that have none below themselves: the ranks."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        return []  # it has just ended
    return [leaf for child in children for leaf in _leaves(int(child))] or [pid]


def _peak_memory(pid: int) -> int:
    """Read the largest resident memory so far in bytes, as getrusage's ru_maxrss."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _processor_seconds(pid: int) -> float:
    """Read user and system time of a process and its threads so far."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def json_lines(file: Path) -> list[dict[str, Any]]:
    """Read the complete lines of a file that may not be there yet, or be written right now."""
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of text in columns, the first one left-aligned; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
