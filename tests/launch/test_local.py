"""Real torchrun jobs of two ranks; the ranks' deeds are in `ranks.py`."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from alignctl.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
Launch = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture
def launch(folder: RunFolder) -> Iterator[Launch]:
    """Starts a launcher; whatever still runs at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(deed: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.launch.launcher", str(folder.path), deed],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.05)


def is_training(folder: RunFolder, attempt: int = 1) -> bool:
    files = [folder.metrics, folder.rank_log(0), folder.rank_log(1)]
    texts = [path.read_text() if path.exists() else "" for path in files]
    return all(text.count("training") == attempt for text in texts)


def test_the_launcher_needs_no_torch() -> None:
    program = (
        "import sys\n"
        "import alignctl.launch.local, alignctl.launch.nodes, alignctl.reporting.progress\n"
        "assert not {'torch', 'tensorboard', 'numpy', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_job_shows_its_progress_and_a_finished_run_is_not_repeated(
    folder: RunFolder, launch: Launch
) -> None:
    process = launch("succeed")
    output, words = process.communicate()
    assert process.returncode == 0, words
    assert output == ""
    lines = words.splitlines()
    assert lines[0] == f"run folder: {folder.path}"
    assert lines[1].startswith("step 1/2  loss 2.0000  lr 1.00e-01  eta ")
    assert lines[2].startswith("step 2/2  loss 1.0000")
    assert lines[3] == "that is all"
    assert folder.read_result() == {"steps": 2}
    assert "rank 1 is about to succeed" in folder.rank_log(1).read_text()

    process = launch("succeed")
    _, words = process.communicate()
    assert process.returncode == 0
    assert "holds this run already, finished" in words
    assert len(folder.metrics.read_text().splitlines()) == 4


def test_a_users_mistake_found_by_one_rank_ends_the_job_with_exit_code_2(
    folder: RunFolder, launch: Launch
) -> None:
    process = launch("make_a_user_error")
    _, words = process.communicate()
    assert process.returncode == 2
    assert words.splitlines()[1:] == [
        "error: data.train: row 3 has no response",
        "hint: add one",
    ]


def test_a_defect_in_one_rank_is_shown_with_the_end_of_its_log(
    folder: RunFolder, launch: Launch
) -> None:
    process = launch("break_down")
    _, words = process.communicate()
    assert process.returncode == 1
    lines = words.splitlines()
    assert lines[1] == "error: rank 1 failed: ValueError: shapes differ"
    assert "  | the last words of rank 1" in lines
    assert lines[-1] == f"hint: the whole log: {folder.rank_log(1)}"
    assert "Traceback" in folder.rank_log(1).read_text()


def test_a_rank_killed_from_outside_is_named(folder: RunFolder, launch: Launch) -> None:
    process = launch("be_killed")
    _, words = process.communicate()
    assert process.returncode == 1
    assert "error: rank 1 was killed by signal 9 (SIGKILL); running out of memory" in words
    assert str(folder.rank_log(1)) in words


def test_a_stopped_launcher_lets_the_ranks_save_and_a_repeat_resumes(
    folder: RunFolder, launch: Launch
) -> None:
    for attempt, (number, first_line) in enumerate(
        [
            (signal.SIGTERM, f"run folder: {folder.path}"),
            (signal.SIGINT, f"resuming {folder.path} at step 5 (attempt 2)"),
        ],
        start=1,
    ):
        process = launch("train_until_stopped")
        wait_for(lambda attempt=attempt: is_training(folder, attempt))  # type: ignore[misc]
        process.send_signal(number)
        _, words = process.communicate()
        assert process.returncode == 0, words
        assert words.splitlines() == [
            first_line,
            "training",
            "stopping: finishing the step and saving; once more to kill",
            "saved",
            "stopped at step 5; the same command goes on from there",
        ]


def test_a_second_signal_kills_a_job_that_does_not_stop(folder: RunFolder, launch: Launch) -> None:
    process = launch("ignore_everything")
    wait_for(lambda: is_training(folder))
    process.terminate()
    wait_for(folder.stop_file.exists)
    process.terminate()
    _, words = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "error: killed before the ranks had saved" in words
    wait_for(lambda: not any(is_alive(pid) for pid in rank_processes(folder)))


def test_a_run_whose_folder_is_removed_says_so(folder: RunFolder, launch: Launch) -> None:
    process = launch("lose_the_folder")
    wait_for(lambda: all((folder.path / f"rank_{rank}").exists() for rank in (0, 1)))
    folder.path.rename(folder.path.with_name("elsewhere"))
    _, words = process.communicate()
    assert process.returncode == 1
    *_, message, hint = words.splitlines()
    assert message.startswith(f"error: {folder.path} was removed, or moved elsewhere, while the")
    assert hint.startswith("hint: start the run again")
    assert "Traceback" not in words


def test_a_launcher_that_died_is_not_called_another_one(folder: RunFolder, launch: Launch) -> None:
    """torchrun gives ranks that leave for nothing half a minute: so long it holds the lock."""
    process = launch("ignore_everything")
    wait_for(lambda: is_training(folder))
    process.kill()
    process.wait()
    second = launch("ignore_everything")
    _, words = second.communicate()
    assert second.returncode == 2
    assert f"{folder.path}: its launcher (process {process.pid} on " in words
    assert ") has died, and what it started (process " in words
    number = int(words.split("kill -9 ")[1].split()[0])
    os.kill(number, signal.SIGKILL)
    wait_for(lambda: not any(is_alive(pid) for pid in rank_processes(folder)))


def test_when_the_launcher_is_killed_the_ranks_save_and_nobody_else_gets_in_before(
    folder: RunFolder, launch: Launch
) -> None:
    process = launch("train_until_stopped")
    wait_for(lambda: is_training(folder))

    second = launch("train_until_stopped")
    _, words = second.communicate()
    assert second.returncode == 2
    assert f"in use by another launcher (process {process.pid} on " in words

    process.kill()
    process.wait()
    wait_for(lambda: "saved" in folder.metrics.read_text())
    wait_for(lambda: not any(is_alive(pid) for pid in rank_processes(folder)))


def test_what_an_operator_sets_for_torchrun_is_not_torchruns(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are defaults of its flags: another rendezvous, and restarts that nobody watches."""
    for name, value in {"RDZV_BACKEND": "c10d", "RDZV_ENDPOINT": "x:1", "STANDALONE": "1"}.items():
        monkeypatch.setenv(f"PET_{name}", value)
    process = launch("succeed")
    _, words = process.communicate()
    assert process.returncode == 0, words


def test_when_torchrun_is_killed_its_ranks_go_too_and_the_launcher_says_so(
    folder: RunFolder, launch: Launch
) -> None:
    process = launch("train_until_stopped")
    wait_for(lambda: is_training(folder))
    (torchrun,) = {parent_of(pid) for pid in rank_processes(folder)}
    os.kill(torchrun, signal.SIGKILL)
    _, words = process.communicate()
    assert process.returncode == 128 + signal.SIGKILL
    assert "error: torchrun was killed by signal 9 (SIGKILL)" in words
    wait_for(lambda: not any(is_alive(pid) for pid in rank_processes(folder)))


def rank_processes(folder: RunFolder) -> list[int]:
    """The process ids in the first lines of the ranks' logs."""
    heads = [folder.rank_log(rank).read_text().splitlines()[0] for rank in (0, 1)]
    return [int(head.partition(" process ")[2].partition(":")[0]) for head in heads]


def parent_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("PPid:")))


def is_alive(pid: int) -> bool:
    """Whether a process still runs; one that ended and was not collected yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in ("Z", "X")
