"""An on-policy run that was killed, wherever it was, is the run that nobody touched: bit for bit.

Two ranks, vLLM in them, RLHF with all that it remembers: value model, KL controller, deviation of
scores, order of prompts.
"""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from alignctl.checkpoints import manifest
from alignctl.run_folder import LATEST, RunFolder
from tests import commands
from tests import tiny_on_policy as tiny
from tests.e2e.test_resume import assert_complete, content

pytestmark = [pytest.mark.ci, pytest.mark.timeout(1800)]

EPISODES = 5
KNOBS = (
    f"train.steps={EPISODES}",
    "checkpoint.save_interval=2",
    "checkpoint.keep=1",
    "score.scale=running",
    "offload=true",
)


@dataclass(frozen=True)
class Setting:
    """The models, the stage, and its run that nobody touched."""

    inputs: Path
    stage: str
    knobs: tuple[str, ...]
    whole: RunFolder

    def command(self, output: Path) -> list[object]:
        """`alignctl ...` for the same run in another folder."""
        return tiny.command(self.stage, self.inputs, output, *self.knobs)


def made(inputs: Path, whole: Path, stage: str, *knobs: str) -> Setting:
    setting = Setting(inputs, stage, knobs, RunFolder(whole))
    outcome = commands.alignctl(*setting.command(whole))
    assert outcome.code == 0, outcome.text
    return setting


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.write(tmp_path_factory.mktemp("inputs"))
    # They go into every checkpoint and reach the disk one by one: the end of a save takes a while.
    for number in range(100):
        (folder / f"hf/notes_{number}.md").touch()
    return folder


@pytest.fixture(scope="module")
def setting(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    knobs = (*KNOBS, "batch.micro_batch_tokens=100")
    return made(inputs, tmp_path_factory.mktemp("whole") / "run", "rlhf", *knobs)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


Start = Callable[[Setting], "subprocess.Popen[str]"]


@pytest.fixture
def start(run: RunFolder) -> Iterator[Start]:
    """Starts an attempt at the run; whatever still runs at the end of the test is killed."""
    started = []

    def launch(setting: Setting) -> "subprocess.Popen[str]":
        started.append(commands.start(*setting.command(run.path)))
        return started[-1]

    yield launch
    for process in started:
        commands.kill_tree(process)


def value(run: RunFolder) -> RunFolder:
    return RunFolder(run.path / "value")


def assert_same(run: RunFolder, whole: RunFolder) -> None:
    """Metrics, answers, result, all that the last checkpoints hold, and nothing besides."""
    for kind in ("train", "validation"):
        assert tiny.rows(run.path, kind) == tiny.rows(whole.path, kind)
    assert run.read_result() == whole.read_result()
    for folder in ("samples", "state"):
        ours, theirs = (sorted((each.path / folder).iterdir()) for each in (run, whole))
        assert [file.name for file in ours] == [file.name for file in theirs]
        assert [file.read_bytes() for file in ours] == [file.read_bytes() for file in theirs]
    for model in (lambda each: each, value):
        if not model(whole).checkpoints.is_dir():
            continue
        names = [sorted(p.name for p in model(each).checkpoints.iterdir()) for each in (run, whole)]
        assert names[0] == names[1]
        last = f"iter_{EPISODES:07d}"
        mine, others = (content(model(each).checkpoints / last) for each in (run, whole))
        assert mine.keys() == others.keys()
        assert any("exp_avg" in key for key in mine)
        assert [key for key in mine if not torch.equal(mine[key], others[key])] == []
        assert_complete(model(run))


def finish(setting: Setting, run: RunFolder, start: Start) -> None:
    """The attempt that comes to the end; and then the run is the other one."""
    saved = run.latest_step()
    outcome = commands.finish(start(setting))
    assert outcome.code == 0, outcome.text
    where = f"at step {saved}" if saved else "from the start"
    assert f"resuming {run.path} {where}" in outcome.err
    assert_same(run, setting.whole)


def pointed_to(run: RunFolder) -> int:
    """The newest checkpoint's step, read while it may be written; 0 for none."""
    pointer = run.checkpoints / LATEST
    return int(pointer.read_text()) if pointer.exists() else 0


def test_a_run_killed_between_the_two_checkpoints_of_a_save_goes_on(
    setting: Setting, run: RunFolder, start: Start
) -> None:
    """The value model of episode 4 is there, the policy's is that of 2, and so all goes on from 2.

    What the killed attempt left of episode 4 is spoilt here, so that nobody can take it for good.
    """
    while (pointed_to(value(run)), pointed_to(run)) != (4, 2):
        shutil.rmtree(run.path, ignore_errors=True)
        process = start(setting)
        commands.wait_until(lambda: pointed_to(run) == 2, process)
        below = commands.descendants(process.pid)
        commands.wait_until(lambda: pointed_to(value(run)) == 4, process)
        commands.kill_tree(process, below)
    for file in (value(run).checkpoints / "iter_0000004").glob("*.distcp"):
        file.write_bytes(b"spoilt")
    state = json.loads((run.path / "state/iter_0000002.json").read_text())
    assert state["learner"]["coef"] != tiny.BETA
    assert state["running"]["count"] == 2 * tiny.PROMPTS * tiny.SAMPLES
    finish(setting, run, start)


def seconds(run: RunFolder, phase: str) -> float:
    """How long a phase of the latest episode took."""
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines(True) if "\n" in line]
    found: float = [row for row in rows if row["kind"] == "train"][-1][f"seconds_{phase}"]
    return found


def episodes_done(run: RunFolder) -> int:
    if not run.metrics.exists():
        return 0
    return max((row["step"] for row in tiny.rows(run.path, "train")), default=0)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["rollout", "training"])
@pytest.mark.parametrize("episode", [1, 4])
def test_a_run_killed_in_the_middle_of_an_episode_goes_on(
    setting: Setting, run: RunFolder, start: Start, phase: str, episode: int
) -> None:
    """In the one after the first, which starts anew; in the one after the fourth, saved before."""
    process = start(setting)
    commands.wait_until(lambda: episodes_done(run) >= episode, process)
    below = commands.descendants(process.pid)
    before = seconds(run, "rollout") if phase == "training" else 0.0
    time.sleep(before + seconds(run, phase) / 2)
    commands.kill_tree(process, below)
    assert run.read_result() is None
    assert_complete(run)
    finish(setting, run, start)


@pytest.mark.slow
def test_a_run_killed_in_its_first_save_starts_anew(
    setting: Setting, run: RunFolder, start: Start
) -> None:
    """No policy was saved yet, but a value model was: the run does not start with that one."""
    while (pointed_to(value(run)), pointed_to(run)) != (2, 0):
        shutil.rmtree(run.path, ignore_errors=True)
        process = start(setting)
        commands.wait_until(lambda: episodes_done(run) == 2, process)
        below = commands.descendants(process.pid)
        commands.wait_until(lambda: pointed_to(value(run)) == 2, process)
        commands.kill_tree(process, below)
    for file in (value(run).checkpoints / "iter_0000002").glob("*.distcp"):
        file.write_bytes(b"spoilt")
    finish(setting, run, start)


@pytest.fixture(scope="module")
def warming(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """A run whose policy has not taken a step when it is saved, until the last episode."""
    knobs = (*KNOBS, "checkpoint.save_interval=1", f"value.warmup_steps={EPISODES - 1}")
    return made(inputs, tmp_path_factory.mktemp("warming") / "run", "rlhf", *knobs)


@pytest.mark.slow
def test_a_run_stopped_while_only_the_value_model_learns_goes_on(
    warming: Setting, run: RunFolder, start: Start
) -> None:
    process = start(warming)
    commands.wait_until(lambda: episodes_done(run) >= 1, process)
    process.send_signal(signal.SIGINT)
    outcome = commands.finish(process)
    assert outcome.code == 0, outcome.text
    assert 1 <= run.latest_step() < EPISODES - 1
    finish(warming, run, start)


@pytest.mark.slow
def test_a_run_killed_while_only_the_value_model_learns_goes_on(
    warming: Setting, run: RunFolder, start: Start
) -> None:
    process = start(warming)
    commands.wait_until(lambda: pointed_to(run) == 1, process)
    commands.kill_tree(process)
    assert 1 <= run.latest_step() < EPISODES - 1
    finish(warming, run, start)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "knobs"),
    [
        ("rlhf", (*KNOBS, "parallel.tp=2", "parallel.sequence_parallel=true")),
        ("grpo", (*KNOBS, "parallel.distributed_optimizer=true", "lora.rank=4")),
        ("online-dpo", (*KNOBS, "parallel.pp=2")),
        ("rlhf", (*KNOBS, "parallel.pp=2", "lora.rank=4")),
    ],
)
def test_a_run_stopped_by_sigterm_goes_on_as_if_it_had_not_been(
    inputs: Path, tmp_path: Path, run: RunFolder, start: Start, stage: str, knobs: tuple[str, ...]
) -> None:
    setting = made(inputs, tmp_path / "whole", stage, *knobs)
    process = start(setting)
    commands.wait_until(lambda: episodes_done(run) >= 1, process)
    process.send_signal(signal.SIGTERM)
    outcome = commands.finish(process)
    assert outcome.code == 0, outcome.text
    stopped_at = run.latest_step()
    assert 1 <= stopped_at < EPISODES
    manifest.verify_checksums(
        run.checkpoints / f"iter_{stopped_at:07d}",
        manifest.read(run.checkpoints / f"iter_{stopped_at:07d}"),
    )
    outcome = commands.finish(start(setting))
    assert outcome.code == 0, outcome.text
    assert f"resuming {run.path} at step {stopped_at}" in outcome.err
    if stopped_at % 2:  # a checkpoint, and a state, that nobody else has
        (run.path / f"state/iter_{stopped_at:07d}.json").unlink()
    assert_same(run, setting.whole)
