"""The course of a training is the same at every layout, and that of plain transformers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.parallel import documents
from tests.parallel.cases import BASELINES, BF16, FOLLOWING, MASTER_WEIGHTS, TRAINING, Case
from tests.parallel.jobs import Result

pytestmark = pytest.mark.ci

BASELINE = {case.model: case for case in BASELINES}


@pytest.mark.parametrize("case", TRAINING, ids=lambda case: case.name)
def test_loss_and_gradient_norm_do_not_depend_on_the_layout(
    case: Case, result: Callable[[Case], Result]
) -> None:
    """Three AdamW steps with clipping; one of eight documents has nothing to learn."""
    found, baseline = result(case), result(BASELINE[case.model])
    assert len(found["loss"]) == documents.TRAIN_STEPS
    assert found["weight"] == baseline["weight"]
    assert found["token_accuracy"] == pytest.approx(baseline["token_accuracy"], rel=1e-5)
    assert found["loss"] == pytest.approx(baseline["loss"], rel=1e-5)
    assert found["grad_norm"] == pytest.approx(baseline["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("case", BF16, ids=lambda case: case.name)
def test_bf16_follows_fp32_at_every_layout(case: Case, result: Callable[[Case], Result]) -> None:
    """bf16 keeps 8 bits, so single values are off by 0.4 %, and sums of them by less."""
    found, baseline = result(case), result(BASELINE[case.model])
    assert found["loss"] == pytest.approx(baseline["loss"], rel=2e-3)
    assert found["grad_norm"] == pytest.approx(baseline["grad_norm"], rel=2e-2)
    assert found["loss"] != pytest.approx(baseline["loss"], rel=1e-6)


@pytest.mark.parametrize("case", FOLLOWING, ids=lambda case: case.name)
def test_twenty_steps_follow_transformers_and_torch_adamw(
    case: Case, models: Path, result: Callable[[Case], Result]
) -> None:
    """Against padded batches through transformers, torch.optim.AdamW and clip_grad_norm_."""
    found = result(case)
    plain = json.loads((models / case.model / "follow.json").read_text())
    assert len(plain["loss"]) == documents.FOLLOW_STEPS
    assert found["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    assert found["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("case", MASTER_WEIGHTS, ids=lambda case: case.name)
def test_bf16_weights_have_fp32_masters_in_which_small_steps_add_up(
    case: Case, result: Callable[[Case], Result]
) -> None:
    found = result(case)
    assert found["model"] == ["torch.bfloat16"]
    assert found["masters"] == found["moments"] == found["gradients"] == ["torch.float32"]
    assert found["moved_after_one"] == 0
    assert found["moved_after_all"] > 0.5
