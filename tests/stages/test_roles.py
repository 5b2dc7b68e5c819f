"""Models beside the policy at layouts of their own: two processes, vLLM and Megatron.

The numbers are those of the run in which all models are laid out as the policy is: only the order
of sums differs.
"""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from alignctl.checkpoints import manifest
from tests import commands
from tests import tiny_on_policy as tiny
from tests.e2e.test_resume import content

pytestmark = [pytest.mark.ci, pytest.mark.timeout(600)]

EPISODES = 2
SHARED = ("parallel.tp=2", "parallel.sequence_parallel=true")
"""Policy and all others at TP 2."""
OWN = {
    "rlhf": (
        *SHARED,
        "roles.reward.parallel.tp=1",
        "roles.reference.parallel.tp=1",
        "roles.value.parallel.tp=1",
        "offload=true",
    ),
    "grpo": (*SHARED, "roles.reward.parallel.tp=1", "roles.reference.parallel.tp=1"),
}
"""The others at TP 1 x DP 2; of rlhf they take turns on the device."""
STAGES_OF_POLICY = (
    "parallel.pp=2",
    *(f"roles.{role}.parallel.{size}" for role in ("reward", "value") for size in ("tp=2", "pp=1")),
)
"""Policy and reference at PP 2, reward and value model at TP 2."""

Run = Callable[..., Path]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("roles"))


@pytest.fixture(scope="module")
def run(inputs: Path) -> Run:
    """Makes the run of a stage with some knobs, once."""

    @cache
    def make(stage: str, *knobs: str) -> Path:
        output = inputs / f"run_{len(list(inputs.iterdir()))}"
        finish(stage, inputs, output, *knobs)
        return output

    return make


def finish(stage: str, inputs: Path, output: Path, *knobs: str) -> None:
    settings = (f"train.steps={EPISODES}", "checkpoint.save_interval=1")
    outcome = commands.alignctl(*tiny.command(stage, inputs, output, *settings, *knobs))
    assert outcome.code == 0, outcome.text


def assert_equal(ours: Path, theirs: Path) -> None:
    """Losses, rewards, metrics and every answer with its score."""
    for kind in ("train", "validation"):
        rows = [tiny.rows(each, kind) for each in (ours, theirs)]
        for mine, other in zip(*rows, strict=True):
            assert numbers(mine) == pytest.approx(numbers(other), rel=1e-5, abs=1e-5)
    for episode in range(1, EPISODES + 1):
        for mine, other in zip(
            *(tiny.samples(each, episode) for each in (ours, theirs)), strict=True
        ):
            assert mine["answer"] == other["answer"]
            assert mine["score"] == pytest.approx(other["score"], rel=1e-5, abs=1e-5)


def numbers(row: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, int | float)}


@pytest.mark.parametrize("stage", OWN)
def test_numbers_are_those_of_one_layout(stage: str, run: Run) -> None:
    """Reward, reference and value model at TP 1 x DP 2 beside a policy at TP 2."""
    assert_equal(run(stage, *OWN[stage]), run(stage, *SHARED))


@pytest.mark.slow
def test_a_pipelined_policy_with_a_tensor_parallel_reward_model(run: Run) -> None:
    assert_equal(run("rlhf", *STAGES_OF_POLICY), run("rlhf", *SHARED))


def test_a_run_goes_on_bit_for_bit(run: Run, inputs: Path, tmp_path: Path) -> None:
    """Its value model is saved and loaded at a layout that is not the policy's."""
    whole, again = run("rlhf", *OWN["rlhf"]), tmp_path / "again"
    shutil.copytree(whole, again)
    (again / "result.json").unlink()
    last = f"iter_{EPISODES:07d}"
    for folder in (again / "checkpoints", again / "value/checkpoints"):
        shutil.rmtree(folder / last)
        (folder / "latest_checkpointed_iteration.txt").write_text(f"{EPISODES - 1}")
    finish("rlhf", inputs, again, *OWN["rlhf"])
    assert tiny.rows(again, "train") == tiny.rows(whole, "train")
    for model in ("checkpoints", "value/checkpoints"):
        mine, other = (content(each / model / last) for each in (again, whole))
        assert mine.keys() == other.keys()
        assert [key for key in mine if not torch.equal(mine[key], other[key])] == []
    saved = [manifest.read(again / name / "checkpoints" / last).training for name in (".", "value")]
    assert [(each["tp"], each["dp"]) for each in saved if each] == [(2, 1), (1, 2)]
