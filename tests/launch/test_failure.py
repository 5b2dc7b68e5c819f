"""The cause is found among error files and torchrun's report (both as torchrun 2.13 writes it)."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from alignctl.errors import AlignctlError, LostError, RunError, UserError
from alignctl.launch.failure import diagnose, exit_codes, tail
from alignctl.launch.job import Job
from alignctl.launch.nodes import Nodes
from alignctl.launch.peers import Heartbeat, Peers
from alignctl.run_folder import RunFolder

JOB = Job("m", ("f",), nproc=4, master_port=0)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path)
    folder.logs.mkdir()
    report(folder)
    return folder


def report(folder: RunFolder, *blocks: tuple[str, int, int]) -> None:
    """torchrun's closing report, of (time of day, rank, exit code)."""
    text = "ChildFailedError:\n"
    for index, (time, rank, code) in enumerate(blocks):
        text += f"[{index}]:\n  time      : 2026-11-22_{time}\n  host      : localhost\n"
        text += f"  rank      : {rank} (local_rank: {rank})\n"
        text += f"  exitcode  : {code} (pid: 7880)  (SIGKILL)\n  error_file: <N/A>\n"
    folder.torchrun_log(0).write_text(text)


def error(folder: RunFolder, time: float, rank: int, kind: str, message: str) -> None:
    content = {"time": time, "rank": rank, "kind": kind, "message": message, "hint": "h"}
    folder.rank_error(rank).write_text(json.dumps(content))


def cause(folder: RunFolder, exit_code: int = 1) -> AlignctlError:
    return diagnose(folder, JOB, exit_code)


def test_a_users_mistake_comes_before_the_defects_it_causes(folder: RunFolder) -> None:
    error(folder, 1.0, 0, "internal", "RuntimeError: connection closed by peer")
    error(folder, 2.0, 1, "user", "row 3 has no response")
    found = cause(folder)
    assert isinstance(found, UserError)
    assert (found.message, found.hint) == ("row 3 has no response", "h")


def test_a_failed_run_says_where_the_log_is(folder: RunFolder) -> None:
    error(folder, 2.0, 1, "run", "the loss is nan at step 7")
    found = cause(folder)
    assert isinstance(found, RunError)
    assert found.message.startswith("the loss is nan at step 7\n")
    assert str(folder.rank_log(1)) in found.message


def test_of_several_defects_the_earliest_is_told(folder: RunFolder) -> None:
    error(folder, 2.0, 0, "internal", "RuntimeError: connection closed by peer")
    error(folder, 1.0, 3, "internal", "ValueError: shapes differ")
    folder.rank_log(3).write_text("=== start\nTraceback\nValueError: shapes differ\n")
    assert cause(folder).message.splitlines() == [
        "rank 3 failed: ValueError: shapes differ",
        "  | Traceback",
        "  | ValueError: shapes differ",
    ]


def test_a_killed_rank_comes_before_the_broken_connections_it_causes(folder: RunFolder) -> None:
    error(folder, 1.0, 0, "internal", "RuntimeError: connection closed by peer")
    report(folder, ("04:00:01", 0, 1), ("04:00:02", 1, -9))
    assert cause(folder).message.startswith("rank 1 was killed by signal 9 (SIGKILL)")


def test_a_rank_that_torchrun_had_to_kill_is_not_the_cause(folder: RunFolder) -> None:
    error(folder, 1.0, 1, "internal", "ValueError: shapes differ")
    report(folder, ("04:00:31", 0, -9), ("04:00:01", 1, 1))
    assert exit_codes(folder.torchrun_log(0)) == {1: 1}
    assert cause(folder).message.startswith("rank 1 failed: ValueError")


def test_an_abort_after_a_defect_is_its_consequence(folder: RunFolder) -> None:
    error(folder, 1.0, 1, "internal", "ValueError: shapes differ")
    report(folder, ("04:00:01", 0, -6), ("04:00:01", 1, 1))
    assert cause(folder).message.startswith("rank 1 failed: ValueError")
    folder.rank_error(1).unlink()
    assert cause(folder).message.startswith("rank 0 was killed by signal 6 (SIGABRT)")


def test_a_rank_that_could_not_even_report_is_named_with_torchruns_log(folder: RunFolder) -> None:
    report(folder, ("04:00:01", 2, 1))
    found = cause(folder)
    assert found.message.startswith("torchrun ended with exit code 1 (rank 2 with 1)\n")
    assert found.exit_code == 1
    assert str(folder.torchrun_log(0)) in (found.hint or "")


def test_a_killed_torchrun_gives_the_exit_code_of_a_shell(folder: RunFolder) -> None:
    found = cause(folder, exit_code=-15)
    assert found.message.startswith("torchrun was killed by signal 15 (SIGTERM)")
    assert found.exit_code == 143


def test_the_tail_is_short_and_of_the_latest_attempt_only(tmp_path: Path) -> None:
    log = tmp_path / "rank_0.log"
    assert tail(log) == []
    log.write_text("=== first\nold\n\n=== second\nnew\n\nend\n")
    assert tail(log) == ["new", "end"]
    log.write_text("".join(f"line {number}\n" for number in range(100_000)))
    assert tail(log)[-1] == "line 99999"
    assert len(tail(log)) == 15


# ---- several nodes ----


def two_nodes(folder: RunFolder) -> Peers:
    """Node 0 of two, which have met; of node 1 only its file is there."""
    peers = Peers(folder, Nodes(2, 0, "node0", 29500), 2, start_seconds=60, silence_seconds=0.05)
    folder.node_file(0).parent.mkdir()
    peers._write(Heartbeat(session="s", state="running", host="first"))
    say(folder, state="running")
    return peers


def say(folder: RunFolder, state: str, code: int | None = None) -> None:
    sign = Heartbeat(session="s", state=state, host="second", code=code)  # type: ignore[arg-type]
    folder.node_file(1).write_text(json.dumps(asdict(sign)))


def test_a_rank_that_was_killed_on_another_node_is_the_cause_there_too(folder: RunFolder) -> None:
    error(folder, 1.0, 0, "internal", "RuntimeError: connection closed by peer")
    text = "  time      : 2026-11-22_10:00:00\n  host      : h\n  rank      : 3 (local_rank: 1)\n"
    folder.torchrun_log(1).write_text(f"{text}  exitcode  : -9 (pid: 7880)\n")
    found = diagnose(folder, replace(JOB, nproc=2, nnodes=2), 1, two_nodes(folder))
    assert isinstance(found, LostError)
    assert found.message.startswith("rank 3 (node 1, second) was killed by signal 9 (SIGKILL)")


def test_a_node_that_is_lost_comes_before_the_broken_connections(folder: RunFolder) -> None:
    error(folder, 1.0, 0, "internal", "RuntimeError: connection closed by peer")
    peers = two_nodes(folder)
    while not peers.is_lost(1):
        pass
    found = diagnose(folder, replace(JOB, nproc=2, nnodes=2), 1, peers)
    assert isinstance(found, LostError)
    assert found.message.startswith("node 1 (second) has not been heard of for")


def test_a_torchrun_that_was_killed_on_another_node_is_the_cause(folder: RunFolder) -> None:
    error(folder, 1.0, 0, "internal", "RuntimeError: connection closed by peer")
    peers = two_nodes(folder)
    say(folder, state="failed", code=-9)
    found = diagnose(folder, replace(JOB, nproc=2, nnodes=2), 1, peers)
    assert found.message == "node 1 (second): torchrun was killed by signal 9 (SIGKILL)"
