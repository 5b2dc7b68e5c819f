"""Rewards per token, generalised advantage estimation, whitening, baselines of groups."""

import math
from itertools import pairwise
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alignctl.algorithms.advantages import (
    gae,
    group_advantages,
    sum_discounted,
    token_rewards,
    whiten,
)
from alignctl.algorithms.kl import k1
from alignctl.algorithms.samples import Segments
from alignctl.config.on_policy import Baseline
from tests.algorithms.experience import lengths_of_samples, normal, seeds, segments_of, tokens

SEGMENTS = segments_of(2, 1)
BASELINES: tuple[Baseline, ...] = ("group_std", "group_mean", "rloo", "reinforce++")


def test_rewards_by_hand() -> None:
    """-0.1 of each difference (1, 2 and -1), and the scores 5 and 7 at the ends."""
    rewards = token_rewards(
        tokens(5, 7), tokens(-1, -2, -3), tokens(-2, -4, -2), SEGMENTS, kl_coef=0.1
    )
    assert rewards.tolist() == pytest.approx([-0.1, 5 - 0.2, 7 + 0.1])


def test_rewards_with_the_tutorials_other_terms_by_hand() -> None:
    """As above, + 0.5 of the reference's log-probabilities, and -3 and -4 on the scores."""
    rewards = token_rewards(
        tokens(5, 7),
        tokens(-1, -2, -3),
        tokens(-2, -4, -2),
        SEGMENTS,
        kl_coef=0.1,
        lm_coef=0.5,
        extra=tokens(-3, -4),
    )
    assert rewards.tolist() == pytest.approx([-1.1, 5 - 0.2 - 2 - 3, 7 + 0.1 - 1 - 4])


@given(lengths_of_samples, st.floats(0, 2), seeds)
def test_rewards_sum_to_the_score_less_the_divergence(
    lengths: list[int], kl_coef: float, seed: int
) -> None:
    """Of each sample, whatever its length: sum of rewards = score - kl_coef x sum of k1."""
    segments, count = segments_of(*lengths), sum(lengths)
    logprobs, reference = normal(seed, count), normal(seed + 1, count)
    scores = normal(seed + 2, len(lengths))
    rewards = token_rewards(scores, logprobs, reference, segments, kl_coef=kl_coef)
    expected = scores - kl_coef * segments.sums(k1(logprobs, reference))
    assert torch.allclose(segments.sums(rewards), expected, atol=1e-12)


def test_gae_by_hand() -> None:
    """gamma 1, lambda 0.5. Sample one: rewards 1, 2 and values 0.5, 1.5: differences
    1 + 1.5 - 0.5 = 2 and 2 + 0 - 1.5 = 0.5; advantages 2 + 0.5 x 0.5 = 2.25 and 0.5; returns 2.75
    and 2. Sample two: 3 - 1 = 2, return 3."""
    advantages, returns = gae(tokens(1, 2, 3), tokens(0.5, 1.5, 1.0), SEGMENTS, gamma=1.0, lam=0.5)
    assert advantages.tolist() == [2.25, 0.5, 2.0]
    assert returns.tolist() == [2.75, 2.0, 3.0]


def test_gae_with_a_discount_by_hand() -> None:
    """gamma 0.5, lambda 0.5: differences 1 + 0.75 - 0.5 = 1.25 and 0.5; 1.25 + 0.25 x 0.5."""
    advantages, _ = gae(tokens(1, 2), tokens(0.5, 1.5), segments_of(2), gamma=0.5, lam=0.5)
    assert advantages.tolist() == [1.375, 0.5]


def test_a_cut_sample_may_be_valued_as_going_on() -> None:
    """The first sample goes on, valued 1.5 after its end too: differences 2 and 2 + 1.5 - 1.5 = 2;
    advantages 2 + 0.5 x 2 = 3 and 2. The second one has ended."""
    advantages, returns = gae(
        tokens(1, 2, 3),
        tokens(0.5, 1.5, 1.0),
        SEGMENTS,
        gamma=1.0,
        lam=0.5,
        bootstrapped=torch.tensor([True, False]),
    )
    assert advantages.tolist() == [3.0, 2.0, 2.0]
    assert returns.tolist() == [3.5, 3.5, 3.0]


@given(lengths_of_samples, seeds)
def test_gae_without_discounts_is_return_less_value(lengths: list[int], seed: int) -> None:
    """gamma = lambda = 1: the rewards from a token on, less its value."""
    segments, count = segments_of(*lengths), sum(lengths)
    rewards, values = normal(seed, count), normal(seed + 1, count)
    advantages, returns = gae(rewards, values, segments, gamma=1.0, lam=1.0)
    offsets = segments.offsets.tolist()
    to_go = torch.cat([rewards[a:b].flip(0).cumsum(0).flip(0) for a, b in pairwise(offsets)])
    assert torch.allclose(advantages, to_go - values, atol=1e-12)
    assert torch.allclose(returns, to_go, atol=1e-12)
    assert torch.allclose(sum_discounted(rewards, segments, 1.0), to_go, atol=1e-12)


@given(lengths_of_samples, seeds, st.floats(0, 1), st.floats(0, 1))
def test_gae_is_its_recursion(lengths: list[int], seed: int, gamma: float, lam: float) -> None:
    """Sample by sample, token by token, as in the textbook."""
    segments, count = segments_of(*lengths), sum(lengths)
    rewards, values = normal(seed, count).tolist(), normal(seed + 1, count).tolist()
    expected: list[float] = []
    for start, end in pairwise(segments.offsets.tolist()):
        following, advantage, found = 0.0, 0.0, []
        for place in reversed(range(start, end)):
            difference = rewards[place] + gamma * following - values[place]
            advantage = difference + gamma * lam * advantage
            following = values[place]
            found.append(advantage)
        expected += reversed(found)
    advantages, _ = gae(tokens(*rewards), tokens(*values), segments, gamma=gamma, lam=lam)
    assert advantages.tolist() == pytest.approx(expected, abs=1e-12)


@given(lengths_of_samples, seeds, st.randoms())
def test_the_order_of_samples_does_not_matter(
    lengths: list[int], seed: int, random: Random
) -> None:
    segments, count = segments_of(*lengths), sum(lengths)
    rewards, values = normal(seed, count), normal(seed + 1, count)
    order = list(range(len(lengths)))
    random.shuffle(order)
    moved, places = _reordered(segments, order)
    advantages, _ = gae(rewards, values, segments, gamma=1.0, lam=0.95)
    of_moved, _ = gae(rewards[places], values[places], moved, gamma=1.0, lam=0.95)
    assert torch.equal(of_moved, advantages[places])
    assert torch.allclose(whiten(of_moved), whiten(advantages)[places], atol=1e-9)


def _reordered(segments: Segments, order: list[int]) -> tuple[Segments, Tensor]:
    """Samples in another order, and where their tokens were."""
    places = torch.arange(int(segments.offsets[-1])).split(segments.lengths.tolist())
    return Segments.of_lengths(segments.lengths[order]), torch.cat([places[s] for s in order])


def test_whitening_by_hand() -> None:
    """1, 2, 3 and 6: mean 3, population variance (4 + 1 + 0 + 9) / 4 = 3.5."""
    expected = [x / math.sqrt(3.5) for x in (-2, -1, 0, 3)]
    assert whiten(tokens(1, 2, 3, 6)).tolist() == pytest.approx(expected, abs=1e-8)


def test_whitening_does_not_see_what_is_masked() -> None:
    mask = torch.tensor([True, False, True])
    assert whiten(tokens(1, 1e9, 3), mask).tolist() == pytest.approx([-1, 0, 1], abs=1e-7)
    assert whiten(tokens(1, 2), torch.tensor([False, False])).tolist() == [0, 0]


@given(st.integers(2, 200), seeds, st.floats(-1e3, 1e3), st.floats(0.01, 100))
def test_whitened_numbers_have_mean_0_and_variance_1_but_for_the_1e_8(
    count: int, seed: int, offset: float, scale: float
) -> None:
    values = normal(seed, count, scale) + offset
    variance = values.double().var(correction=0).item()
    whitened = whiten(values)
    assert abs(whitened.mean().item()) < 1e-9
    # Two draws can nearly agree: what keeps the root from 0 then weighs as much as they do.
    expected = variance / (variance + 1e-8)
    assert whitened.var(correction=0).item() == pytest.approx(expected, abs=1e-6)


def test_whitening_equal_numbers_gives_zeros() -> None:
    assert whiten(torch.full((7,), 0.1)).abs().max() < 1e-6


SCORES = tokens(1, 3, 5, 3, 3, 2)
GROUPS = torch.tensor([4, 4, 4, 1, 1, 7])


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        # Mean 3, population variance (4 + 0 + 4) / 3.
        ("group_std", [-2 / math.sqrt(8 / 3), 0, 2 / math.sqrt(8 / 3), 0, 0, 0]),
        ("group_mean", [-2, 0, 2, 0, 0, 0]),
        # 1 - (3 + 5) / 2, 3 - (1 + 5) / 2, 5 - (1 + 3) / 2.
        ("rloo", [-3, 0, 3, 0, 0, 0]),
        # Mean 17 / 6; squares 9.5 - 289 / 36 = 53 / 36: deviation 1.213352.
        (
            "reinforce++",
            [(x - 17 / 6) / math.sqrt(9.5 - 289 / 36) for x in (1, 3, 5, 3, 3, 2)],
        ),
    ],
)
def test_advantages_of_groups_by_hand(baseline: Baseline, expected: list[float]) -> None:
    found = group_advantages(SCORES, GROUPS, baseline)
    assert found.advantages.tolist() == pytest.approx(expected, abs=1e-5)
    is_constant = [False] * 6 if baseline == "reinforce++" else [False] * 3 + [True] * 3
    assert found.is_constant.tolist() == is_constant


def test_a_quotient_of_sizes_has_all_digits() -> None:
    """0, 0, 0 and 1: 0 - 1/3 and 1 - 0. A 4/3 in float32 would be seen at 1e-8."""
    found = group_advantages(tokens(0, 0, 0, 1), torch.zeros(4, dtype=torch.int64), "rloo")
    assert found.advantages.tolist() == pytest.approx([-1 / 3] * 3 + [1], abs=1e-15)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("score", [0.1, 0.7, 1e6, -3.3])
def test_equal_scores_give_exactly_0(baseline: Baseline, score: float) -> None:
    """In fp32 too, where the deviation of seven equal numbers is not 0 by rounding."""
    for dtype in (torch.float32, torch.float64):
        found = group_advantages(
            torch.full((7,), score, dtype=dtype), torch.zeros(7, dtype=torch.int64), baseline
        )
        assert found.advantages.tolist() == [0.0] * 7
        assert found.is_constant.all()


@pytest.mark.parametrize("baseline", ["group_std", "group_mean", "rloo"])
def test_scores_that_hardly_differ_are_not_equal(baseline: Baseline) -> None:
    scores = tokens(1, 1 + 1e-12)
    found = group_advantages(scores, torch.zeros(2, dtype=torch.int64), baseline)
    assert not found.is_constant.any()
    assert found.advantages[1] > 0
    assert found.advantages.abs().max() < 1e-5


groups_of_samples = st.lists(st.integers(0, 3), min_size=1, max_size=16)


@given(groups_of_samples, seeds, st.sampled_from(BASELINES))
def test_advantages_follow_their_samples(groups: list[int], seed: int, baseline: Baseline) -> None:
    """Another order of the samples is another order of the advantages, and they sum to 0."""
    count = len(groups)
    scores, ids = normal(seed, count).round(decimals=1), torch.tensor(groups)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    found = group_advantages(scores, ids, baseline)
    moved = group_advantages(scores[order], ids[order], baseline)
    assert torch.allclose(moved.advantages, found.advantages[order], atol=1e-9)
    assert torch.equal(moved.is_constant, found.is_constant[order])
    for group in ids.unique():
        if baseline != "reinforce++":
            assert abs(found.advantages[ids == group].sum().item()) < 1e-9
    assert abs(found.advantages.sum().item()) < 1e-8


@given(groups_of_samples, seeds, st.sampled_from(["group_std", "group_mean", "rloo"]))
def test_groups_are_independent(groups: list[int], seed: int, baseline: Baseline) -> None:
    """Other scores in group 0 change nothing in the others."""
    scores, ids = normal(seed, len(groups)), torch.tensor(groups)
    changed = torch.where(ids == 0, scores * 100 - 7, scores)
    before = group_advantages(scores, ids, baseline).advantages
    after = group_advantages(changed, ids, baseline).advantages
    assert torch.equal(before[ids != 0], after[ids != 0])
