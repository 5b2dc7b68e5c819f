"""Adapters compute, learn and merge at every layout as PEFT's do on one rank."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from alignctl.checkpoints.find import find
from alignctl.config.sections import Parallel
from alignctl.models.adapters import adapter_shapes, describe
from tests.parallel.adapters import LORA, STEPS
from tests.parallel.cases import (
    LORA_BASELINES,
    LORA_BF16,
    LORA_CASES,
    LORA_DPO,
    LORA_DROPOUT,
    LORA_DROPOUT_BASELINES,
    LORA_REWARD,
    Case,
)
from tests.parallel.jobs import Result

pytestmark = pytest.mark.ci

BASELINE = {case.kind: case for case in LORA_BASELINES}


def _peft(models: Path, case: Case) -> Result:
    found: Result = json.loads((models / case.model / "peft.json").read_text())
    return found


@pytest.mark.parametrize("case", LORA_CASES, ids=lambda case: case.name)
def test_logits_and_gradients_are_those_of_peft(
    case: Case, result: Callable[[Case], Result]
) -> None:
    """Of A and B that are not zero, each gradient relative to its largest element."""
    found = result(case)
    assert found["logits"] < 1e-5
    if not case.parallel.distributed_optimizer:
        assert found["gradients"] < 1e-5
        assert found["num_gradients"] == {"llama-gqa": 4 * 14, "bloom": 4 * 8}[case.model]


@pytest.mark.parametrize("case", LORA_CASES, ids=lambda case: case.name)
def test_five_steps_are_those_of_peft(
    case: Case, models: Path, result: Callable[[Case], Result]
) -> None:
    """The first of them starts as the base: B is zero."""
    found, theirs = result(case), _peft(models, case)
    assert len(found["loss"]) == STEPS
    assert found["loss"][0] == pytest.approx(theirs["start"], rel=1e-6)
    assert found["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert found["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    assert found["loss"][-1] < found["loss"][0]


@pytest.mark.parametrize("case", LORA_CASES, ids=lambda case: case.name)
def test_frozen_weights_keep_every_bit_and_the_checkpoint_merges_adapters_into_them(
    case: Case, models: Path, result: Callable[[Case], Result]
) -> None:
    """Nor do they have gradients. Merging rounds once, and moves logits as far as PEFT's does."""
    found, theirs = result(case), _peft(models, case)
    assert [found[f"changed_{rank}"] for rank in range(case.world)] == [[]] * case.world
    assert found["merged"] < 2e-6 * found["largest"]
    assert found["merged"] < 2 * theirs["merged"]


@pytest.mark.parametrize("case", LORA_CASES, ids=lambda case: case.name)
def test_the_sampler_gets_the_merged_weights_and_the_reference_is_what_is_below(
    case: Case, result: Callable[[Case], Result]
) -> None:
    """Every tensor pushed is the checkpoint's, each bit; without adapters logits are the base's.

    In bf16 the checkpoint is merged into the float32 weights of its base, which engines round.
    """
    found = result(case)
    assert found["pushed_differently"] == []
    assert found["off"] < 2e-6 * found["largest"]


@pytest.mark.parametrize("case", LORA_DROPOUT_BASELINES, ids=lambda case: case.name)
def test_dropout_on_one_rank_is_pefts(
    case: Case, models: Path, result: Callable[[Case], Result]
) -> None:
    """From the same seed the same elements fall away: of q, k and v, of gate and up, each its own.

    B is zero at first, so it is the first gradient and the second loss that they change.
    """
    found, theirs = result(case), _peft(models, case)
    assert found["loss"] == pytest.approx(theirs["dropped"]["loss"], rel=1e-5)
    assert found["grad_norm"] == pytest.approx(theirs["dropped"]["grad_norm"], rel=1e-4)
    assert found["loss"][1] != pytest.approx(theirs["loss"][1], rel=1e-4)


@pytest.mark.parametrize("case", LORA_DROPOUT, ids=lambda case: case.name)
def test_dropout_is_the_same_where_layers_are_computed_again(
    case: Case, result: Callable[[Case], Result]
) -> None:
    """And weights that all ranks hold whole stay the same on all of them, bit for bit.

    Nothing falls away once it is trained: the merged model computes the same.
    """
    found = result(case)
    assert found["is_whole_the_same"] is True
    assert found["merged"] < 2e-6 * found["largest"]
    plain = case.parallel.model_copy(update={"recompute": "none"})
    again = result(case.model_copy(update={"parallel": plain}))
    assert found["loss"] == again["loss"]
    assert found["grad_norm"] == pytest.approx(again["grad_norm"], rel=1e-6)


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_ranks_drop_the_same_of_what_they_share_and_their_own_of_what_is_cut(
    sequence_parallel: bool, result: Callable[[Case], Result]
) -> None:
    parallel = Parallel(tp=2, sequence_parallel=sequence_parallel)
    (case,) = [each for each in LORA_DROPOUT if each.parallel == parallel]
    first, second = (result(case)[f"kept_0_{rank}"] for rank in range(2))
    for mine, other in zip(first["row"], second["row"], strict=True):
        assert mine != other
    for mine, other in zip(first["column"], second["column"], strict=True):
        assert (mine == other) is not sequence_parallel
    shares = [sum(mask) / len(mask) for mask in (*first["row"], *first["column"])]
    assert len(shares) == 8
    assert sum(shares) / len(shares) == pytest.approx(0.7, abs=0.1)


@pytest.mark.parametrize("case", LORA_BF16, ids=lambda case: case.name)
def test_bf16_adapters_follow_fp32(
    case: Case, models: Path, result: Callable[[Case], Result]
) -> None:
    found, theirs = result(case), _peft(models, case)
    assert found["loss"] == pytest.approx(theirs["loss"], rel=5e-3)
    assert [found[f"changed_{rank}"] for rank in range(case.world)] == [[]] * case.world


@pytest.mark.parametrize("case", [*LORA_REWARD, *LORA_DPO], ids=lambda case: case.name)
def test_reward_models_and_dpo_with_adapters_do_not_depend_on_the_layout(
    case: Case, result: Callable[[Case], Result]
) -> None:
    found, baseline = result(case), result(BASELINE[case.kind])
    for key in ("loss", "grad_norm"):
        assert found[key] == pytest.approx(baseline[key], rel=1e-5)


@pytest.mark.parametrize("name", ["llama-gqa", "bloom"])
def test_as_many_parameters_are_trained_as_peft_trains(name: str, models: Path) -> None:
    model = find(models / name / "hf").model
    theirs = json.loads((models / name / "peft.json").read_text())["num_trained"]
    assert sum(rows * cols for rows, cols in adapter_shapes(model, LORA).values()) == theirs
    assert f": {theirs:,} parameters are trained" in describe(model, LORA)
