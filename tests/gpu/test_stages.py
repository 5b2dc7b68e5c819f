"""Stages on tiny models by their commands; what was stopped goes on bit for bit."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from alignctl.run_folder import RunFolder
from tests import tiny, tiny_on_policy
from tests.e2e.test_resume import content, rows
from tests.gpu.conftest import PLACES, skip_without
from tests.gpu.jobs import ROOT

STEPS = 4
TRAINING = ("sft", "reward", "dpo", "pretrain")
EPISODIC = ("grpo", "rlhf", "online-dpo")


def each(stages: tuple[str, ...], *everyday: str) -> list[Any]:
    """Stages in places; on a CPU those of every day, the others have their own tests there."""
    return [
        pytest.param(
            stage,
            place.values[0],
            marks=[*place.marks, *([pytest.mark.slow] if is_late(place, stage, everyday) else [])],
            id=f"{stage}-{place.values[0]}",
        )
        for stage in stages
        for place in PLACES
    ]


def is_late(place: Any, stage: str, everyday: tuple[str, ...]) -> bool:
    return place.values == ("cpu",) and stage not in everyday


def alignctl(place: str, *words: object) -> None:
    """Runs a command, started as a module: where wheels are unpacked there is no other."""
    command = [sys.executable, "-m", "alignctl", *map(str, words), "launch.nproc_per_node=1"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"on {place}: {done.stderr[-6000:]}"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    tiny.write_model(folder / "hf")
    tiny.write_rows(folder / "sft.jsonl")
    for name in ("reward", "dpo"):
        tiny.write_pairs(folder / f"{name}.jsonl")
    tiny.write_corpus(folder / "pretrain")
    preset = tiny.preset()
    preset["model"] |= {"attention_dropout": 0.1, "hidden_dropout": 0.1}
    tiny.write_preset(folder / "tiny.yaml", **preset)
    return folder


def command(stage: str, inputs: Path, output: Path) -> list[object]:
    flags = ["--preset", inputs / "tiny.yaml", "--load", inputs / "hf", "--output", output]
    data = inputs / (stage if stage == "pretrain" else f"{stage}.jsonl")
    return [stage, *flags, "--data", data]


@pytest.mark.parametrize(("stage", "place"), each(TRAINING, "sft"))
def test_a_stopped_run_goes_on_bit_for_bit(
    stage: str, place: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Of four steps the last two once more, from the checkpoint of the second; with dropout."""
    skip_without(place)
    inputs = request.getfixturevalue("inputs")  # not made where it is of no use
    whole, again = (RunFolder(tmp_path / name / "run") for name in ("whole", "again"))
    alignctl(place, *command(stage, inputs, whole.path))
    shutil.copytree(whole.path, again.path)
    (again.path / "result.json").unlink()
    shutil.rmtree(again.checkpoints / f"iter_{STEPS:07d}")
    (again.checkpoints / "latest_checkpointed_iteration.txt").write_text("2")
    alignctl(place, *command(stage, inputs, again.path))
    assert len(rows(whole, "train")) == STEPS
    assert rows(again, "train") == rows(whole, "train")
    ours, theirs = (content(run.checkpoints / f"iter_{STEPS:07d}") for run in (again, whole))
    assert ours.keys() == theirs.keys()
    assert [key for key, tensor in ours.items() if not torch.equal(tensor, theirs[key])] == []


@pytest.mark.parametrize(("stage", "place"), each(EPISODIC))
def test_stopped_episodes_go_on_bit_for_bit(stage: str, place: str, tmp_path: Path) -> None:
    """Of three episodes the last one once more, from the checkpoint of the second."""
    skip_without(place, "vllm")
    inputs = tiny_on_policy.write(tmp_path / "inputs")
    whole, again = (RunFolder(tmp_path / name / "run") for name in ("whole", "again"))
    knobs = ("train.steps=3", "checkpoint.save_interval=2")
    alignctl(place, *tiny_on_policy.command(stage, inputs, whole.path, *knobs))
    shutil.copytree(whole.path, again.path)
    again.result.unlink()
    for folder in again.path.rglob("iter_0000003"):
        shutil.rmtree(folder)
    for latest in again.path.rglob("latest_checkpointed_iteration.txt"):
        latest.write_text("2")
    alignctl(place, *tiny_on_policy.command(stage, inputs, again.path, *knobs))
    for kind in ("train", "validation"):
        found, expected = (tiny_on_policy.rows(run.path, kind) for run in (again, whole))
        assert found == expected, kind
    assert tiny_on_policy.samples(again.path, 3) == tiny_on_policy.samples(whole.path, 3)


@pytest.mark.parametrize(("stage", "place"), each(EPISODIC))
def test_episodes_sample_and_learn(stage: str, place: str, tmp_path: Path) -> None:
    """The sampler's log-probabilities are the trainer's but for its 16-bit floats."""
    skip_without(place, "vllm")
    inputs = tiny_on_policy.write(tmp_path / "inputs")
    words = tiny_on_policy.command(stage, inputs, tmp_path / "run", "train.steps=2")
    alignctl(place, *words)
    episodes = tiny_on_policy.rows(tmp_path / "run", "train")
    assert len(episodes) >= 2
    for row in episodes:
        assert row["mismatch_mean_difference"] < 0.05
