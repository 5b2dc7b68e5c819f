"""What the ranks of the launcher's tests do: the name of the deed stands in the run's config."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from alignctl.errors import RunError, UserError
from alignctl.launch import worker
from alignctl.reporting.metrics import MetricsWriter
from alignctl.run_folder import LATEST, RunFolder

RANK = int(os.environ["RANK"])


def main(folder: RunFolder) -> None:
    deed = folder.read_config()["deed"]
    print(f"rank {RANK} is about to {deed}")
    globals()[deed](folder)


def succeed(folder: RunFolder) -> None:
    with MetricsWriter(folder, enabled=RANK == 0) as metrics:
        metrics.start(0, 2)
        metrics.train(1, loss=2.0, lr=0.1)
        metrics.train(2, loss=1.0, lr=0.1)
        metrics.note("that is all")
    if RANK == 0:
        folder.write_result({"steps": 2})


def make_a_user_error(folder: RunFolder) -> None:
    if RANK == 1:
        raise UserError("data.train: row 3 has no response", "add one")
    wait_for_ever()


def break_down(folder: RunFolder) -> None:
    if RANK == 1:
        print("the last words of rank 1")
        raise ValueError("shapes differ")
    wait_for_ever()


def fill_the_disk(folder: RunFolder) -> None:
    Path("/dev/full").write_text("x")


def wrap_a_full_disk(folder: RunFolder) -> None:
    try:
        fill_the_disk(folder)
    except OSError:
        raise RuntimeError("the writer failed") from None


def diverge(folder: RunFolder) -> None:
    raise RunError("the loss is nan at step 7 " + "\u2207" * 100_000, "lower optimizer.lr")


def be_killed(folder: RunFolder) -> None:
    if RANK == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    wait_for_ever()


def train_until_stopped(folder: RunFolder) -> None:
    step = folder.latest_step()
    with MetricsWriter(folder, enabled=RANK == 0, step=step) as metrics:
        metrics.start(step, 1000)
        metrics.note("training")
        print("training")
        while not worker.stop_requested(folder):
            time.sleep(0.02)
        if RANK == 0:
            (folder.checkpoints / "iter_0000005").mkdir(parents=True, exist_ok=True)
            (folder.checkpoints / LATEST).write_text("5")
            metrics.note("saved")


def lose_the_folder(folder: RunFolder) -> None:
    while True:  # as who removes it while ranks go on, one of which writes a checkpoint then
        (folder.path / f"rank_{RANK}").write_text("training")
        time.sleep(0.02)


def ignore_everything(folder: RunFolder) -> None:
    with MetricsWriter(folder, enabled=RANK == 0) as metrics:
        metrics.note("training")
        print("training")
        wait_for_ever()


def wait_for_ever() -> None:
    """As a rank does in a collective that another rank does not join: no Python code runs."""
    reader, _ = os.pipe()
    while True:
        os.read(reader, 1)
        threading.Event().wait()


if __name__ == "__main__":
    worker.run(main, sys.argv[1])
