"""What on-policy learning asks of the engine is the same at every layout, and transformers' own."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.parallel.cases import (
    OFFLOAD,
    POLICY,
    POLICY_BASELINES,
    POLICY_BF16,
    VALUE,
    VALUE_BASELINES,
    VALUE_BF16,
    Case,
)
from tests.parallel.jobs import Result
from tests.parallel.on_policy import LENGTHS

pytestmark = pytest.mark.ci

BASELINE = {case.model: case for case in (*VALUE_BASELINES, *POLICY_BASELINES)}


def tensor(models: Path, case: Case, name: str) -> list[float]:
    found: list[float] = torch.load(models / case.model / name, weights_only=True).tolist()
    return found


@pytest.mark.parametrize("case", [*VALUE_BASELINES, *VALUE], ids=lambda case: case.name)
def test_values_are_the_head_on_every_hidden_state_before_an_answer_token(
    case: Case, models: Path, result: Callable[[Case], Result]
) -> None:
    """So is a step of the clipped loss; samples that no batch has are NaN, the others as before."""
    found, plain = result(case), json.loads((models / case.model / "value.json").read_text())
    values = tensor(models, case, "values.pt")
    assert found["values"] == pytest.approx(values, rel=1e-5, abs=1e-5)
    count = sum(length for _, length in LENGTHS[:3])
    assert found["some"][:count] == pytest.approx(values[:count], rel=1e-5, abs=1e-5)
    assert all(math.isnan(value) for value in found["some"][count:])
    assert found["loss"][0] == pytest.approx(plain["loss"], rel=1e-5)
    assert found["grad_norm"][0] == pytest.approx(plain["grad_norm"], rel=1e-5)
    assert 0 < found["clip_fraction"][0] < 1
    # The same at every layout, but for the one token of a rank that has run out of answers.
    assert found["flops_forward"] == pytest.approx(
        result(BASELINE[case.model])["flops_forward"], rel=0.05
    )
    assert found["flops_of_a_step"] == pytest.approx(3 * found["flops_forward"])


@pytest.mark.parametrize("case", VALUE, ids=lambda case: case.name)
def test_steps_of_a_value_model_do_not_depend_on_the_layout(
    case: Case, result: Callable[[Case], Result]
) -> None:
    found, baseline = result(case), result(BASELINE[case.model])
    assert found["loss"] == pytest.approx(baseline["loss"], rel=1e-5)
    assert found["grad_norm"] == pytest.approx(baseline["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("case", VALUE_BF16, ids=lambda case: case.name)
def test_values_in_bf16_are_near(
    case: Case, models: Path, result: Callable[[Case], Result]
) -> None:
    """bf16 has eight bits: about half a percent per operation."""
    found, plain = result(case), json.loads((models / case.model / "value.json").read_text())
    values = tensor(models, case, "values.pt")
    scale = max(map(abs, values))
    assert found["values"] == pytest.approx(values, abs=0.05 * scale)
    assert found["loss"][0] == pytest.approx(plain["loss"], rel=0.05)
    assert found["grad_norm"][0] == pytest.approx(plain["grad_norm"], rel=0.1)


@pytest.mark.parametrize("case", [*POLICY_BASELINES, *POLICY], ids=lambda case: case.name)
def test_a_step_of_ppo_is_that_of_transformers(
    case: Case, models: Path, result: Callable[[Case], Result]
) -> None:
    """Log-probabilities at temperature 0.7; clipping, KL in the loss and entropy bonus."""
    found, plain = result(case), json.loads((models / case.model / "ppo.json").read_text())
    logprobs = tensor(models, case, "logprobs.pt")
    assert found["logprobs"] == pytest.approx(logprobs, rel=1e-5, abs=1e-5)
    for name in ("loss", "grad_norm", "entropy", "ratio"):
        assert found["ppo"][name] == pytest.approx(plain[name], rel=1e-5), name


@pytest.mark.parametrize("case", POLICY, ids=lambda case: case.name)
def test_policy_losses_do_not_depend_on_the_layout(
    case: Case, result: Callable[[Case], Result]
) -> None:
    """Token means of PPO, sequence means of GSPO under weights, sums of CISPO under a mask."""
    found, baseline = result(case), result(BASELINE[case.model])
    for loss in ("ppo", "gspo", "cispo"):
        assert found[loss] == pytest.approx(baseline[loss], rel=1e-5, abs=1e-6), loss


@pytest.mark.parametrize(
    "case", [*POLICY_BASELINES, *POLICY, *POLICY_BF16], ids=lambda case: case.name
)
def test_the_first_ratio_is_exactly_one(case: Case, result: Callable[[Case], Result]) -> None:
    """What was computed without gradients comes out bit for bit with them, in bf16 too."""
    start = result(case)["start"]
    assert start["ratio"] == 1
    assert start["approx_kl"] == start["approx_kl_k1"] == 0
    assert start["clip_fraction_low"] == start["clip_fraction_high"] == 0


@pytest.mark.parametrize(
    "case", [*POLICY_BASELINES, *POLICY, *POLICY_BF16], ids=lambda case: case.name
)
def test_an_only_update_finds_the_old_log_probabilities_itself(
    case: Case, result: Callable[[Case], Result]
) -> None:
    """Bit for bit those that a pass before it finds, and so are loss, gradient and metrics."""
    everything = result(case)
    for name, found in everything["corrections"].items():
        assert found["logprobs"] == everything["logprobs"], name
        assert found["found"] == found["known"], name
    masked = {name: found["masked"] for name, found in everything["corrections"].items()}
    assert 0 < masked["mask_tokens"] < 1
    assert 0 < masked["mask_samples"] < 1
    assert masked["truncate"] is masked["none"] is None


@pytest.mark.parametrize("case", OFFLOAD, ids=lambda case: case.name)
def test_an_engine_that_gives_way_takes_the_same_steps(
    case: Case, result: Callable[[Case], Result]
) -> None:
    """Weights, master weights and moments bit for bit; nothing is left on the device between."""
    found = result(case)
    staying, leaving = found["numbers"]
    assert leaving == staying
    assert found["different"] == []
    assert found["num_tensors"] > 20
    assert found["left"] == [0, 0, 0]
    before, *after = found["bytes"]
    assert 0 < before < after[0] == after[1], "the optimizer's moments come with the first step"
