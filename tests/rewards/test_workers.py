"""Worker processes against answers that hang, fill the memory or kill."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from alignctl.errors import RunError
from alignctl.rewards.workers import RuleWorkers, Task

SLOW = "\\boxed{" + "\\sin(" * 11 + "x" + ")" * 11 + "}"
"""The grammar tries every pair of parentheses in several ways: most of a second."""
LITTLE = 0.1
"""Processor seconds in which SLOW is never compared, and numbers always are."""


def task(completion: str, reference: str = "72") -> Task:
    return Task(completion, reference, "math_rule")


def test_verdicts_come_in_the_order_of_the_tasks() -> None:
    with RuleWorkers(num_workers=2) as workers:
        verdicts = workers.verdicts([task(f"#### {n}", str(n - n % 2)) for n in range(40)])
        assert workers.verdicts([]) == []
    assert [verdict.reason for verdict in verdicts] == ["correct", "wrong"] * 20
    assert [verdict.score for verdict in verdicts] == [1.0, 0.0] * 20


def test_an_answer_that_takes_too_long_is_ended_and_the_others_are_not_touched() -> None:
    tasks = [task("72"), task(SLOW), task("71"), task(SLOW), task(""), task("72", "{")]
    with RuleWorkers(num_workers=2, limit_seconds=LITTLE) as workers:
        for _ in range(2):  # the replaced processes work as the first ones did
            assert [verdict.reason for verdict in workers.verdicts(tasks)] == [
                "correct",
                "timeout",
                "wrong",
                "timeout",
                "no_answer",
                "bad_reference",
            ]


def test_only_processor_time_counts_as_time() -> None:
    """A process that gets no processor for twice its limit, as on a machine with other work."""
    others = children(os.getpid())
    with RuleWorkers(num_workers=1, limit_seconds=0.5) as workers:
        assert workers.verdicts([task("72")])[0].reason == "correct"
        [pid] = {*children(os.getpid())} - {*others}
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(1.0, os.kill, (pid, signal.SIGCONT)).start()
        assert workers.verdicts([task("72")])[0].reason == "correct"
        assert {*children(os.getpid())} - {*others} == {pid}


def test_a_process_that_only_waits_is_ended_and_its_answer_tried_again() -> None:
    """Stopped for good: 20 times the limit pass by the clock; a new process knows the answer."""
    others = children(os.getpid())
    with RuleWorkers(num_workers=1, limit_seconds=LITTLE) as workers:
        assert workers.verdicts([task("72")])[0].reason == "correct"
        [pid] = {*children(os.getpid())} - {*others}
        os.kill(pid, signal.SIGSTOP)
        reasons = [verdict.reason for verdict in workers.verdicts([task("72"), task("71")])]
        assert reasons == ["correct", "wrong"]
        assert not is_alive(pid)


def test_an_answer_whose_process_dies_counts_as_crashed() -> None:
    """Killed from outside while it is at a task, as the kernel does when memory runs out."""
    others = children(os.getpid())
    with RuleWorkers(num_workers=1, limit_seconds=60) as workers:
        assert workers.verdicts([task("72")])[0].reason == "correct"
        [pid] = {*children(os.getpid())} - {*others}
        os.kill(pid, signal.SIGSTOP)
        killer = threading.Timer(0.5, os.kill, (pid, signal.SIGKILL))
        killer.start()
        verdicts = workers.verdicts([task("72"), task("72")])
        killer.join()
    assert [verdict.reason for verdict in verdicts] == ["crashed", "correct"]


def test_a_process_that_dies_while_it_is_idle_costs_no_answer() -> None:
    others = children(os.getpid())  # such as the resource tracker of multiprocessing
    with RuleWorkers(num_workers=1) as workers:
        assert workers.verdicts([task("72")])[0].reason == "correct"
        [pid] = {*children(os.getpid())} - {*others}
        os.kill(pid, signal.SIGKILL)
        while is_alive(pid):
            time.sleep(0.01)
        assert workers.verdicts([task("72")])[0].reason == "correct"


def test_no_process_is_left_behind() -> None:
    others = children(os.getpid())
    with RuleWorkers(num_workers=2, limit_seconds=60) as workers:
        workers.verdicts([task("72")])
        pids = {*children(os.getpid())} - {*others}
        assert len(pids) == 2
    assert not [pid for pid in pids if is_alive(pid)]


@pytest.mark.slow
@pytest.mark.parametrize("completion", ["72", SLOW])
def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path, completion: str) -> None:
    """Idle ones see the end of their pipe, the others do so after their task."""
    program = textwrap.dedent("""
        import sys, time
        from alignctl.rewards.workers import RuleWorkers, Task
        with RuleWorkers(num_workers=2, limit_seconds=3) as workers:
            workers.verdicts([Task("72", "72", "math_rule")])
            print("ready", flush=True)
            workers.verdicts([Task(sys.argv[1], "72", "math_rule")] * 200)
            time.sleep(600)
    """)
    command = [sys.executable, "-c", program, completion]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        pids = children(parent.pid)
        assert len(pids) == 2
        time.sleep(0.5)  # the answers that hang have reached the workers
        parent.kill()
    until = time.monotonic() + 60
    while any(is_alive(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [pid for pid in pids if is_alive(pid)]


def test_workers_import_neither_torch_nor_the_program_of_the_parent() -> None:
    code = "import sys, alignctl.rewards.worker; print({'torch', 'numpy'} & {*sys.modules})"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    assert result.stdout == "set()\n"


def test_workers_that_do_not_start_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", os.devnull)  # a Python that finds no library of its own
    with (
        pytest.raises(RunError, match="a process for rule rewards died on its start"),
        RuleWorkers(num_workers=1) as workers,
    ):
        workers.verdicts([task("72")])


def children(pid: int) -> list[int]:
    """The worker processes that a process has started."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and parent_of(int(folder.name)) == pid:
            command = (folder / "cmdline").read_bytes()
            if b"alignctl.rewards.worker" in command:
                found.append(int(folder.name))
    return found


def parent_of(pid: int) -> int | None:
    fields = status(pid)
    return int(fields[1]) if fields else None


def is_alive(pid: int) -> bool:
    """Whether it runs; one that is dead and only waits to be collected does not."""
    fields = status(pid)
    return bool(fields) and fields[0] != "Z"


def status(pid: int) -> list[str]:
    """State and parent of a process; nothing when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()[:2]
