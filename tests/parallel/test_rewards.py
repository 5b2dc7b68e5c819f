"""Reward models are the same at every layout, and the same as transformers' own."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.parallel.cases import (
    DPO_FOLLOW,
    DPO_START,
    NEW_HEAD,
    NEW_HEAD_BASELINE,
    REWARD,
    REWARD_BASELINES,
    REWARD_BF16,
    REWARD_FOLLOW,
    Case,
)
from tests.parallel.followed import STEPS
from tests.parallel.jobs import Result
from tests.parallel.preferences import SIZES

pytestmark = pytest.mark.ci

BASELINE = {case.model: case for case in REWARD_BASELINES}


@pytest.mark.parametrize("case", [*REWARD_BASELINES, *REWARD], ids=lambda case: case.name)
def test_scores_losses_and_gradients_are_those_of_transformers(
    case: Case, models: Path, result: Callable[[Case], Result]
) -> None:
    """Three AdamW steps over four prompts, one with a tie: margin, centring, mean over pairs."""
    found = result(case)
    plain = json.loads((models / case.model / "course.json").read_text())
    assert found["scores"][: sum(SIZES)] == pytest.approx(plain["scores"], rel=1e-5, abs=1e-5)
    assert found["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert found["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("case", REWARD, ids=lambda case: case.name)
def test_loss_and_gradient_norm_do_not_depend_on_the_layout(
    case: Case, result: Callable[[Case], Result]
) -> None:
    found, baseline = result(case), result(BASELINE[case.model])
    assert found["loss"] == pytest.approx(baseline["loss"], rel=1e-5)
    assert found["grad_norm"] == pytest.approx(baseline["grad_norm"], rel=1e-5)
    assert found["accuracy"] == pytest.approx(baseline["accuracy"], rel=1e-6)


@pytest.mark.parametrize("case", REWARD, ids=lambda case: case.name)
def test_a_score_does_not_depend_on_its_neighbours(
    case: Case, result: Callable[[Case], Result]
) -> None:
    """Neither on the order of the batches nor on what is packed beside it; NaN where none was."""
    found, baseline = result(case), result(BASELINE[case.model])
    documents = sum(SIZES)
    expected = baseline["scores"][:documents]
    assert found["scores"][:documents] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert found["scores_backwards"][:documents] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert math.isnan(found["scores"][documents])


@pytest.mark.parametrize("case", REWARD_BF16, ids=lambda case: case.name)
def test_bf16_scores_follow_fp32_at_every_layout(
    case: Case, result: Callable[[Case], Result]
) -> None:
    """A hidden state keeps 8 bits, 0.4 %, in each of 4 layers; the head itself adds in float32.

    A score is one hidden state, so less is averaged out than in the loss of many tokens: scores are
    off by some percent of their spread, and losses by as much, since they are made of differences
    of two scores. (6.6 %, 3.2 % and, of the norms, 2.8 % were the largest.)
    """
    found, baseline = result(case), result(BASELINE[case.model])
    ours, theirs = (np.asarray(each["scores"][: sum(SIZES)]) for each in (found, baseline))
    assert 1e-4 * theirs.std() < np.abs(ours - theirs).max() < 0.1 * theirs.std()
    assert found["loss"] == pytest.approx(baseline["loss"], rel=5e-2)
    assert found["grad_norm"] == pytest.approx(baseline["grad_norm"], rel=5e-2)


@pytest.mark.parametrize("case", NEW_HEAD, ids=lambda case: case.name)
def test_a_new_head_is_the_same_at_every_layout(
    case: Case, result: Callable[[Case], Result]
) -> None:
    found, baseline = result(case), result(NEW_HEAD_BASELINE)
    assert found["scores"][: sum(SIZES)] == pytest.approx(
        baseline["scores"][: sum(SIZES)], rel=1e-5, abs=1e-6
    )
    assert found["loss"] == pytest.approx(baseline["loss"], rel=1e-5)
    assert found["grad_norm"] == pytest.approx(baseline["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("case", DPO_START, ids=lambda case: case.name)
def test_dpo_starts_at_ln_2_with_the_log_probabilities_of_transformers(
    case: Case, models: Path, result: Callable[[Case], Result]
) -> None:
    """-log sigmoid(0) = ln 2: a policy that is its own reference prefers nothing."""
    found = result(case)
    plain = json.loads((models / case.model / "answer_logprobs.json").read_text())
    assert found["logprobs"] == pytest.approx(plain, rel=1e-5)
    assert found["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert found["margin"] == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
def test_a_reward_model_follows_trl(
    models: Path, result: Callable[[Case], Result], tmp_path: Path
) -> None:
    """Twenty AdamW steps of RewardTrainer, whose rows are padded."""
    from tests.parallel import plain_trl

    plain = plain_trl.reward(models / REWARD_FOLLOW.model / "hf", tmp_path)
    assert_followed(result(REWARD_FOLLOW), plain)


@pytest.mark.slow
def test_dpo_follows_trl(models: Path, result: Callable[[Case], Result], tmp_path: Path) -> None:
    """Twenty AdamW steps of DPOTrainer, which runs the reference beside the policy."""
    from tests.parallel import plain_trl

    assert_followed(result(DPO_FOLLOW), plain_trl.dpo(models / DPO_FOLLOW.model / "hf", tmp_path))


def assert_followed(found: Result, plain: Result) -> None:
    """As many steps as TRL's, each with its loss and the norm of its gradient."""
    assert len(plain["loss"]) == STEPS
    assert found["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    assert found["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)
