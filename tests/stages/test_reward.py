"""Reward models end to end: what a run leaves behind, in our format and in transformers'."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from alignctl.checkpoints import manifest
from alignctl.data.preference_store import PreferenceData
from alignctl.run_folder import RunFolder
from alignctl.stages.shared.prepared import prepared_data
from tests import commands
from tests.e2e.test_resume import rows
from tests.stages.conftest import Alignctl

pytestmark = pytest.mark.ci


def test_the_offset_centres_the_best_answers_also_in_transformers(
    alignctl: Alignctl, rewarded: Path, tmp_path: Path
) -> None:
    """The exported model's scores are without the offset, and it makes their mean 0."""
    run = RunFolder(rewarded)
    checkpoint = run.latest_checkpoint()
    assert checkpoint is not None
    found = manifest.read(checkpoint)
    assert (found.role, found.head) == ("reward", "linear")
    result = run.read_result()
    assert result is not None
    offset = found.score_offset
    assert offset
    assert result["score_offset"] == offset

    outcome = alignctl("convert-mg2hf", "--load", rewarded, "--save", tmp_path / "hf")
    assert outcome.code == 0, outcome.text
    assert f"score_offset {offset:.4f} is not in the weights" in outcome.err
    assert manifest.read(tmp_path / "hf").score_offset == offset
    model, loading = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert model.config.num_labels == 1
    assert not loading["missing_keys"]
    data = PreferenceData.open(prepared_data(run))
    with torch.no_grad():
        scores = [
            model(torch.from_numpy(data.train.document(row).tokens[None].astype(np.int64))).logits
            for row in data.train.best_answers().members.tolist()
        ]
    assert torch.stack(scores).mean().item() + offset == pytest.approx(0, abs=1e-5)


def test_what_a_reader_wants_to_know_is_in_the_metrics(rewarded: Path) -> None:
    (first, *_, last) = rows(RunFolder(rewarded), "validation")
    assert first["step"] == 0
    assert last.keys() >= {"accuracy", "margin", "score_mean", "score_std", "length_correlation"}
    (train, *_) = rows(RunFolder(rewarded), "train")
    assert train.keys() >= {"loss", "accuracy", "margin", "score_mean", "grad_norm"}
    assert any(key.startswith("accuracy_") for key in train)


def test_a_reward_model_goes_on_with_its_own_head(
    workspace: Path, rewarded: Path, tmp_path: Path
) -> None:
    """Its first validation is the last one of the run that it came from."""
    outcome = commands.alignctl(
        *("reward", "--preset", workspace / "tiny.yaml", "--load", rewarded),
        *("--data", workspace / "pairs.jsonl", "--output", tmp_path / "run"),
        *("train.steps=1", "optimizer.warmup_steps=0"),
    )
    assert outcome.code == 0, outcome.text
    assert "reward model, 2 layers" in outcome.err
    assert "head: a new one" not in outcome.err
    before, after = RunFolder(rewarded).read_result(), RunFolder(tmp_path / "run").read_result()
    assert before is not None
    assert after is not None
    assert after["first_validation_loss"] == pytest.approx(before["validation"]["loss"], rel=1e-6)
