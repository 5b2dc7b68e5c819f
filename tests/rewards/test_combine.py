"""Rewards of rule and model together, and the penalty for repetition, by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignctl.config.on_policy import ScoreSource
from alignctl.rewards.combine import combine, repetition_penalty


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("merge", [2.5, -1.0]), ("sparse_only", [2.0, 0.0]), ("dense_only", [0.5, -1.0])],
)
def test_the_strategies(strategy: ScoreSource, expected: list[float]) -> None:
    """Weights 2 and 0.5 of the rule's 1, 0 and the model's 1, -2."""
    reward = combine(
        strategy,
        rule=np.asarray([1.0, 0.0]),
        model=np.asarray([1.0, -2.0]),
        rule_weight=2.0,
        model_weight=0.5,
    )
    assert reward.tolist() == expected


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], 0.0),
        ([5], 0.0),
        ([1, 2, 3, 4, 5], 0.0),
        # (7, 7) at 0, 1, 2: 3 times, a gap of 1 - 2, floored at 1; (7, 7, 7) at 0, 1: 2 / 1.
        ([7, 7, 7, 7], -5.0),
        # (1, 2) at 0 and 8: 2 / (8 - 2); no three tokens come twice.
        ([1, 2, 3, 4, 5, 6, 7, 8, 1, 2], -2 / 6),
        # (1, 2) and (2, 3) at 0, 7 and 1, 8: 2 / (7 - 2); (1, 2, 3) at 0, 7: 2 / (7 - 3).
        ([1, 2, 3, 4, 5, 6, 7, 1, 2, 3], -(2 / 5 + 2 / 4)),
        # (1, 1) at 0, 4 and (9, 9) at 2, 8 are as frequent: the lower one counts, 2 / (4 - 2).
        ([1, 1, 9, 9, 1, 1, 5, 6, 9, 9], -2 / 2),
        # (1, 2) at 0, 3, 9: the mean gap is 4.5, so 3 / 2.5.
        ([1, 2, 3, 1, 2, 4, 5, 6, 7, 1, 2], -3 / 2.5),
    ],
)
def test_the_repetition_penalty(tokens: list[int], expected: float) -> None:
    assert repetition_penalty(tokens) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.integers(0, 3), max_size=30))
def test_the_penalty_is_a_number_from_zero_to_minus_the_length_times_two(tokens: list[int]) -> None:
    assert -2.0 * len(tokens) <= repetition_penalty(tokens) <= 0.0


@given(st.permutations(range(20)))
def test_different_tokens_cost_nothing(tokens: list[int]) -> None:
    assert repetition_penalty(tokens) == 0.0
