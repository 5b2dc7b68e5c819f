"""Why a job failed: the one cause among what the ranks wrote, what torchrun saw, and its own end.

When one rank fails, the others lose their connection and fail too; only the first cause is told.
"""

import json
import re
import signal
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from alignctl.errors import AlignctlError, LostError, RunError, UserError
from alignctl.launch.job import Job
from alignctl.launch.peers import Peers
from alignctl.run_folder import RunFolder

_MAX_LINES = 15
_MAX_TAIL_BYTES = 16384

_CRASHES = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
"""Signals that no failing neighbour causes; an abort may follow from a broken connection."""

# In torchrun's closing report, one block for each rank that did not end well.
_REPORTED = re.compile(
    r"time +: (\S+)\s+host +: \S*\s+rank +: (\d+) \(local_rank: \d+\)\s+exitcode +: (-?\d+) "
)
_SECONDS_TOGETHER = 5
"""torchrun kills whoever does not end within half a minute after the first failure; ranks that
ended this soon after it were not killed by torchrun."""


@dataclass(frozen=True)
class RankError:
    """The error that a rank wrote before it left."""

    time: float
    rank: int
    kind: str
    """`user`, `run` or `internal`."""
    message: str
    hint: str | None


def diagnose(
    folder: RunFolder, job: Job, exit_code: int, peers: Peers | None = None
) -> AlignctlError:
    """Find the cause of a failure and return it as an error for the user.

    On several nodes the files of all of them are read, so that all tell the same cause.

    Args:
        folder: The run folder.
        job: The job that failed, as this node started it.
        exit_code: torchrun's exit code, negative for a signal.
        peers: The other nodes, each of which has ended, failed or is lost; None on one node.
    """
    if peers is not None and (refusal := peers.refusal()):
        return refusal
    errors = rank_errors(folder)
    for error in errors:
        if error.kind == "user":
            return UserError(error.message, error.hint)
        if error.kind == "run":
            log = folder.rank_log(error.rank)
            who = _name(error.rank, peers)
            return RunError(f"{error.message}\n  ({who}; log: {log})", error.hint)
    deaths: dict[int, int] = {}
    for node in range(job.nnodes):
        deaths |= exit_codes(folder.torchrun_log(node))
    crashed = {rank: -code for rank, code in deaths.items() if -code in _CRASHES}
    if crashed:
        return _explain_kill(folder, *next(iter(crashed.items())), peers)
    if peers is not None and (lost := _lost_node(peers)):
        return lost
    if errors:
        first = errors[0]
        message = f"{_name(first.rank, peers)} failed: {first.message}"
        return _add_tail(message, folder.rank_log(first.rank), exit_code=1)
    for rank, code in deaths.items():
        if code < 0:
            return _explain_kill(folder, rank, -code, peers)
    log_of_torchrun = folder.torchrun_log(job.node_rank)
    if exit_code < 0:
        name = _signal_name(-exit_code)
        return _add_tail(f"torchrun was killed by {name}", log_of_torchrun, 128 - exit_code)
    ranks = ", ".join(f"rank {rank} with {code}" for rank, code in deaths.items())
    return _add_tail(
        f"torchrun ended with exit code {exit_code}{f' ({ranks})' if ranks else ''}",
        log_of_torchrun,
        exit_code,
    )


def _lost_node(peers: Peers) -> AlignctlError | None:
    """Find a node whose end broke the connections of the others; None if there is no such node."""
    hint = "see what became of that node; the same command goes on from the last checkpoint"
    for number in peers.lost():
        return LostError(peers.lost_message(number), hint)
    for number, ended_by in peers.list_killed().items():
        return LostError(
            f"{peers.name(number)}: torchrun was killed by {_signal_name(ended_by)}", hint
        )
    return None


def _name(rank: int, peers: Peers | None) -> str:
    return f"rank {rank}" if peers is None else peers.name_of_rank(rank)


def rank_errors(folder: RunFolder) -> list[RankError]:
    """Read the errors that the ranks wrote before they left, the earliest first."""
    errors = []
    for path in folder.logs.glob("error_rank_*.json"):
        errors.append(RankError(**json.loads(path.read_text(encoding="utf-8"))))
    return sorted(errors, key=lambda error: error.time)


def exit_codes(torchrun_log: Path) -> dict[int, int]:
    """Read the exit code of each rank that torchrun saw fail by itself, negative for signals."""
    if not torchrun_log.exists():
        return {}  # its node had not come to start it
    text = torchrun_log.read_text(encoding="utf-8", errors="replace")
    blocks = [
        (datetime.strptime(time, "%Y-%m-%d_%H:%M:%S"), int(rank), int(code))
        for time, rank, code in _REPORTED.findall(text)
    ]
    if not blocks:
        return {}
    limit = min(blocks)[0] + timedelta(seconds=_SECONDS_TOGETHER)
    return {rank: code for time, rank, code in sorted(blocks) if time <= limit}


def _explain_kill(folder: RunFolder, rank: int, number: int, peers: Peers | None) -> AlignctlError:
    message = f"{_name(rank, peers)} was killed by {_signal_name(number)}"
    log = folder.rank_log(rank)
    if number != signal.SIGKILL:
        return _add_tail(message, log, exit_code=1)
    return LostError(
        f"{message}; running out of memory is the usual cause\n  (log: {log})",
        "lower batch.micro_batch_size or batch.seq_length, or see the kernel's log; "
        "the same command goes on from the last checkpoint",
    )


def _add_tail(message: str, log: Path, exit_code: int) -> AlignctlError:
    lines = [f"  | {line}" for line in tail(log)]
    error = LostError("\n".join([message, *lines]), f"the whole log: {log}")
    error.exit_code = exit_code
    return error


def tail(log: Path) -> list[str]:
    """Read the last lines of a log, from the latest attempt only."""
    if not log.exists():
        return []
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _MAX_TAIL_BYTES))
        lines = stream.read().decode("utf-8", errors="replace").splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("=== ")]
    latest = lines[starts[-1] + 1 :] if starts else lines
    return [line for line in latest if line.strip()][-_MAX_LINES:]


def _signal_name(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"
