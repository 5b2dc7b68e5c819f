"""Scores before they become rewards: scale, clip, answers without an end, length."""

import json
from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignctl.algorithms.scores import RunningStd, overlong_penalty, shape_scores
from alignctl.config.on_policy import MissingEOS
from tests.algorithms.experience import normal, tokens

SCORES = tokens(1.5, -300.0, 500.0, 2.0)
HAS_EOS = torch.tensor([True, True, True, False])


@pytest.mark.parametrize(
    ("missing_eos", "last"), [("keep", 2.0), ("replace", -1.0), ("add", 2.0 - 1.0)]
)
def test_scores_are_clipped_and_cut_answers_judged(missing_eos: MissingEOS, last: float) -> None:
    shaped = shape_scores(
        SCORES, HAS_EOS, missing_eos=missing_eos, missing_eos_score=-1.0, clip=100.0
    )
    assert shaped.tolist() == [1.5, -100, 100, last]


def test_a_cut_answer_is_worth_one_less_than_the_worst_that_ended() -> None:
    """Whatever the level of the scores: 20, 23 (cut) and 25 give 19; shifted by -40 it is -21."""
    scores, has_eos = tokens(20.0, 23.0, 25.0), torch.tensor([True, False, True])
    for shift in (0.0, -40.0):
        shaped = shape_scores(
            scores + shift, has_eos, missing_eos="replace", missing_eos_score=None
        )
        assert shaped.tolist() == [20 + shift, 19 + shift, 25 + shift]


def test_cut_answers_alone_are_all_worth_the_same() -> None:
    shaped = shape_scores(
        tokens(3.0, 7.0),
        torch.tensor([False, False]),
        missing_eos="replace",
        missing_eos_score=None,
    )
    assert shaped.tolist() == [2.0, 2.0]


def test_a_penalty_without_a_number_is_one() -> None:
    shaped = shape_scores(SCORES, HAS_EOS, missing_eos="add", missing_eos_score=None, clip=100.0)
    assert shaped.tolist() == [1.5, -100, 100, 1.0]


def test_the_scale_comes_before_the_clip_and_the_fixed_score_after() -> None:
    """/ 4: 0.375, -75, 125 clipped to 50, and -3 as it is."""
    shaped = shape_scores(
        SCORES, HAS_EOS, missing_eos="replace", missing_eos_score=-3.0, clip=50.0, scale=4.0
    )
    assert shaped.tolist() == [0.375, -50, 50, -3]


def test_the_running_deviation_by_hand() -> None:
    """1, 3 and then 8: mean 4, squares 9 + 1 + 16 = 26."""
    running = RunningStd().merge(tokens(1, 3)).merge(tokens(8))
    assert asdict(running) == pytest.approx({"count": 3, "mean": 4, "squares": 26})
    assert running.std == pytest.approx((26 / 3) ** 0.5)
    assert RunningStd(**json.loads(json.dumps(asdict(running)))) == running


@pytest.mark.parametrize("scores", [[], [5.0], [0.1] * 7, [1e6] * 3])
def test_equal_scores_are_not_blown_up(scores: list[float]) -> None:
    """Seven times 0.1 has a deviation of 1e-17 by rounding, which must not divide anything."""
    running = RunningStd()
    for score in scores:
        running = running.merge(tokens(score))
    assert running.std == 1
    if scores:
        assert RunningStd().merge(tokens(*scores)).std == 1


@given(st.integers(2, 50), st.integers(1, 49), st.floats(-100, 100))
def test_merging_is_seeing_all_at_once(count: int, cut: int, offset: float) -> None:
    scores = normal(count, count) + offset
    cut = min(cut, count - 1)
    merged = RunningStd().merge(scores[:cut]).merge(scores[cut:])
    assert merged.std == pytest.approx(scores.std(correction=0).item())
    assert merged.mean == pytest.approx(scores.mean().item(), abs=1e-12)


def test_the_soft_penalty_of_long_answers_by_hand() -> None:
    """A limit of 20 and a buffer of 4: 0 up to 16, -1/4 for each token more."""
    lengths = torch.tensor([1, 16, 17, 19, 20])
    penalty = overlong_penalty(lengths, max_new_tokens=20, buffer=4)
    assert penalty.tolist() == [0, 0, -0.25, -0.75, -1]
