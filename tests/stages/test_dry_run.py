"""What `--dry-run` prints, pasted into a shell."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from alignctl.run_folder import LATEST, RunFolder
from tests.stages.conftest import Alignctl

pytestmark = pytest.mark.ci

ODD = "it's a run"
"""Spaces and a quote, which a shell reads in another way than a path."""


def paste(line: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """What bash makes of a line, without the variables that a rank of a test might have set."""
    environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environ, capture_output=True, text=True, check=False
    )


def test_the_printed_command_goes_on_with_a_run(
    alignctl: Alignctl, workspace: Path, finished: Path
) -> None:
    run = RunFolder(workspace / ODD)
    shutil.copytree(finished, run.path)
    # As if it had been killed after step 2.
    run.result.unlink()
    shutil.rmtree(run.checkpoints / "iter_0000004")
    (run.checkpoints / LATEST).write_text("2")
    where = ("--load", workspace / "hf", "--data", workspace / "train.jsonl", "--output", ODD)
    shown = alignctl("sft", "--preset", workspace / "tiny.yaml", *where, "--dry-run")
    assert shown.code == 0, shown.text
    assert f"note: the command goes on with the run in {ODD}" in shown.err
    done = paste(shown.out.splitlines()[0], workspace)
    assert done.returncode == 0, done.stderr
    assert run.latest_step() == 4
    assert run.read_result() is not None


@pytest.mark.parametrize("stage", ["sft", "reward", "grpo"])
def test_before_there_is_a_run_the_printed_command_says_so(
    alignctl: Alignctl, workspace: Path, stage: str
) -> None:
    shown = alignctl(stage, "--preset", "tiny-llama", "--output", "no run", "--dry-run")
    assert shown.code == 0, shown.text
    assert "note: the command needs no run first; without --dry-run, alignctl" in shown.err
    assert "note: --load is missing: a model folder to start from" in shown.err
    done = paste(shown.out.splitlines()[0], workspace)
    assert done.returncode != 0
    assert "no run is no run folder: alignctl STAGE --output makes it" in done.stderr
    assert not (workspace / "no run").exists()
