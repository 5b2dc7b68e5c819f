"""Trainer's and sampler's log-probabilities of the same tokens."""

import math

import pytest
import torch
from hypothesis import given

from alignctl.algorithms.mismatch import (
    measure,
    sequence_mask,
    token_mask,
    truncate_importance_weights,
)
from tests.algorithms.experience import normal, seeds, segments_of, tokens

# Ratios 2, 1/2, 1 and 8.
TRAINER = tokens(math.log(2), 0.0, -1.0, math.log(8))
SAMPLER = tokens(0.0, math.log(2), -1.0, 0.0)


def test_the_measures_by_hand() -> None:
    """|d| = ln 2 (1, 1, 0, 3): mean 1.25 ln 2, largest 3 ln 2. Ratios: mean 11.5 / 4 = 2.875,
    squares 4 + 1/4 + 1 + 64 = 69.25, so 11.5^2 / (4 x 69.25) = 0.477437 of the tokens.
    k1 = -d: mean -ln 2 (1 - 1 + 0 + 3) / 4 = -0.75 ln 2. k3 = ratio - 1 - d: 2.875 - 1 - 0.75 ln 2.
    """
    found = measure(TRAINER.float(), SAMPLER.float())
    assert vars(found) == pytest.approx(
        {
            "mean_difference": 1.25 * math.log(2),
            "max_difference": 3 * math.log(2),
            "mean_ratio": 2.875,
            "kl": 1.875 - 0.75 * math.log(2),
            "kl_k1": -0.75 * math.log(2),
            "effective_share": 0.477437,
        },
        abs=1e-6,
    )


def test_equal_log_probabilities_match() -> None:
    assert vars(measure(TRAINER, TRAINER)) == {
        "mean_difference": 0,
        "max_difference": 0,
        "mean_ratio": 1,
        "kl": 0,
        "kl_k1": 0,
        "effective_share": 1,
    }


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_log_probability_that_is_not_finite_is_seen(bad: float) -> None:
    found = measure(tokens(0.0, -1.0), tokens(bad, -1.0))
    assert not math.isfinite(found.mean_difference)
    assert not math.isfinite(found.max_difference)


def test_weights_are_truncated() -> None:
    weights = truncate_importance_weights(TRAINER, SAMPLER, cap=2.0)
    assert weights.tolist() == pytest.approx([2, 0.5, 1, 2])


def test_tokens_outside_of_the_band_are_masked() -> None:
    inside = token_mask(TRAINER, SAMPLER, low=0.6, high=5.0)
    assert inside.tolist() == [True, False, True, False]


def test_samples_are_masked_as_a_whole() -> None:
    """The geometric means are sqrt(2 x 1/2) = 1 and sqrt(1 x 8) = 2.83."""
    kept = sequence_mask(TRAINER, SAMPLER, segments_of(2, 2), low=0.999, high=1.002)
    assert kept.tolist() == [True, True, False, False]


@given(seeds)
def test_the_measures_are_within_their_bounds(seed: int) -> None:
    trainer, sampler = normal(seed, 50), normal(seed + 1, 50)
    found = measure(trainer, sampler)
    assert found.kl >= 0
    assert 1 / 50 <= found.effective_share <= 1
    assert found.mean_difference <= found.max_difference
    assert bool((truncate_importance_weights(trainer, sampler) <= 2).all())
    assert torch.equal(token_mask(trainer, sampler, 0.0, math.inf), torch.ones(50).bool())
