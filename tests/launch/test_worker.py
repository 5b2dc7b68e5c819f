"""One rank as a process of its own, without torchrun; the deeds are in `ranks.py`."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from alignctl.errors import RunError, UserError
from alignctl.launch import worker
from alignctl.run_folder import LATEST, RunFolder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def start(folder: RunFolder, deed: str, rank: int = 1) -> subprocess.Popen[str]:
    folder.config.write_text(json.dumps({"deed": deed}))
    return subprocess.Popen(
        [sys.executable, "-m", "tests.launch.ranks", str(folder.path)],
        env={**os.environ, "RANK": str(rank)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )


def run(folder: RunFolder, deed: str) -> int:
    process = start(folder, deed)
    output, _ = process.communicate()
    assert output == "", "all output belongs into the log"
    return process.returncode


def wait_for_line(folder: RunFolder, rank: int, text: str) -> None:
    deadline = time.monotonic() + 60
    log = folder.rank_log(rank)
    while not log.exists() or text not in log.read_text():
        assert time.monotonic() < deadline, f"rank {rank} did not say {text!r}"
        time.sleep(0.02)


def error_of(folder: RunFolder, rank: int = 1) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(folder.rank_error(rank).read_text())
    return error


def test_a_rank_that_ends_well_leaves_a_log_and_a_mark(folder: RunFolder) -> None:
    assert run(folder, "succeed") == 0
    assert "rank 1 is about to succeed" in folder.rank_log(1).read_text()
    assert sorted(path.name for path in folder.logs.iterdir()) == ["ended_rank_1", "rank_1.log"]


def test_a_users_mistake_is_told_without_a_traceback(folder: RunFolder) -> None:
    assert run(folder, "make_a_user_error") == 2
    error = error_of(folder)
    assert (error["kind"], error["rank"]) == ("user", 1)
    assert (error["message"], error["hint"]) == ("data.train: row 3 has no response", "add one")
    assert "Traceback" not in folder.rank_log(1).read_text()


def test_a_failed_run_with_a_message_of_any_length_is_told(folder: RunFolder) -> None:
    assert run(folder, "diverge") == 1
    error = error_of(folder)
    assert error["kind"] == "run"
    assert error["message"].startswith("the loss is nan at step 7 ")
    assert error["message"].endswith(" ...")


def test_a_defect_leaves_its_traceback_in_the_log(folder: RunFolder) -> None:
    assert run(folder, "break_down") == 1
    error = error_of(folder)
    assert (error["kind"], error["message"]) == ("internal", "ValueError: shapes differ")
    assert "Traceback (most recent call last)" in folder.rank_log(1).read_text()


@pytest.mark.parametrize("deed", ["fill_the_disk", "wrap_a_full_disk"])
def test_a_full_disk_is_called_by_its_name(folder: RunFolder, deed: str) -> None:
    assert run(folder, deed) == 1
    error = error_of(folder)
    assert error["kind"] == "run"
    assert error["message"].startswith("no space left on device while writing ")


def test_sigterm_is_a_request_to_save_and_leave(folder: RunFolder) -> None:
    process = start(folder, "train_until_stopped", rank=0)
    wait_for_line(folder, 0, "training")
    process.terminate()
    process.communicate()
    assert process.returncode == 0
    assert folder.latest_step() == 5


def test_the_stop_file_is_a_request_to_save_and_leave(folder: RunFolder) -> None:
    process = start(folder, "train_until_stopped", rank=0)
    wait_for_line(folder, 0, "training")
    folder.stop_file.touch()
    process.communicate()
    assert process.returncode == 0
    assert folder.latest_step() == 5


@pytest.mark.parametrize("other_deed", ["make_a_user_error", "be_killed"])
def test_a_rank_that_waits_for_a_lost_one_leaves_at_sigterm(
    folder: RunFolder, other_deed: str
) -> None:
    waiting = start(folder, "ignore_everything", rank=0)
    wait_for_line(folder, 0, "about to")
    start(folder, other_deed, rank=1).communicate()
    waiting.terminate()
    waiting.communicate()
    assert waiting.returncode == 1
    assert "another rank failed: leaving" in folder.rank_log(0).read_text()


def test_a_rank_that_waits_for_a_slow_one_stays_at_sigterm(folder: RunFolder) -> None:
    waiting = start(folder, "ignore_everything", rank=0)
    slow = start(folder, "ignore_everything", rank=1)
    for rank in (0, 1):
        wait_for_line(folder, rank, "about to")
    waiting.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(0.5)
    for process in (waiting, slow):
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL


def test_only_known_errors_are_explained(folder: RunFolder) -> None:
    assert worker.explain(ValueError("x"), folder) is None
    assert worker.explain(OSError(errno.EIO, "x"), folder) is None
    error = UserError("x")
    assert worker.explain(error, folder) is error
    full = worker.explain(OSError(errno.ENOSPC, "No space left on device", "/a/b"), folder)
    assert isinstance(full, RunError)
    assert "while writing /a/b: " in full.message
    assert " bytes are free on the disk at /" in full.message
    assert full.message.endswith("; no checkpoint was complete yet")
    saved = folder.checkpoints / "iter_0000003"
    saved.mkdir(parents=True)
    (folder.checkpoints / LATEST).write_text("3")
    full = worker.explain(OSError(errno.ENOSPC, "No space left on device"), folder)
    assert full is not None
    assert full.message.endswith(f"; {saved} is whole")
    assert full.hint == ("free some space and start the same command again: it goes on from there")
