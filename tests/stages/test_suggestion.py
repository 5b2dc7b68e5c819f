"""A stage without --preset: what suits the model is chosen, said, and trained."""

import json
import shutil
from pathlib import Path

import pytest

from tests.commands import Outcome
from tests.stages.conftest import Alignctl

SMALL = ("batch.global_batch_size=4", "batch.seq_length=64", "train.epochs=null", "train.steps=1")


def refused(outcome: Outcome) -> str:
    assert (outcome.code, outcome.out) == (2, "")
    return outcome.err


@pytest.mark.ci
def test_a_model_is_trained_without_a_preset_and_its_run_knows_it(
    alignctl: Alignctl, workspace: Path, tmp_path: Path
) -> None:
    flags = ["--load", workspace / "hf", "--data", workspace / "train.jsonl"]
    outcome = alignctl("sft", *flags, "--output", tmp_path / "run", *SMALL)
    assert outcome.code == 0, outcome.text
    assert "no --preset: this one is made for" in outcome.err
    assert "extends: recipes/llama2" in outcome.err
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["preset"] == "hf.yaml"
    again = alignctl("sft", *flags, "--output", tmp_path / "run", *SMALL)
    assert again.code == 0
    assert "finished" in again.err


@pytest.mark.ci
def test_the_preset_of_a_run_is_that_of_what_follows_it(
    alignctl: Alignctl, finished: Path, workspace: Path, tmp_path: Path
) -> None:
    flags = ["--load", finished, "--data", workspace / "pairs.jsonl", "--output", tmp_path / "r"]
    outcome = alignctl("reward", *flags, "--dry-run")
    assert f"--preset {workspace / 'tiny.yaml'}, as of the run {finished}" in outcome.err


def test_what_is_printed_is_a_preset(alignctl: Alignctl, workspace: Path, tmp_path: Path) -> None:
    outcome = alignctl("presets", "suggest", "--load", workspace / "bloom", "--gpus", 2)
    assert outcome.code == 0, outcome.text
    (tmp_path / "mine.yaml").write_text(outcome.out)
    assert alignctl("presets", "validate", tmp_path / "mine.yaml").code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("sft",), "--preset is missing: neither it nor --load says which model"),
        (("sft", "--load", "nowhere"), "nowhere: no such folder"),
        (("launch", "slurm", "sft", "--load", "hf"), "the machine, which is another one"),
        (("presets", "suggest", "--load", "hf", "--gpu", "h100"), "need --gpus"),
        (("presets", "suggest", "--load", "hf", "--gpus", "2", "--gpu", "x1"), "--gpu x1: unknown"),
        (
            ("presets", "suggest", "--load", "hf", "--gpus", "1", "--gpu-memory", "1"),
            "no layout of any stage for hf fits onto 1 x a100-80g with 1 GiB",
        ),
    ],
)
def test_what_cannot_be_suggested_is_said(
    alignctl: Alignctl, words: tuple[str, ...], message: str
) -> None:
    assert message in refused(alignctl(*words))


def test_a_family_that_is_none_of_ours_is_refused_by_name(
    alignctl: Alignctl, workspace: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(workspace / "hf", tmp_path / "other"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mixtral"}))
    assert "mixtral" in refused(alignctl("sft", "--load", folder))
