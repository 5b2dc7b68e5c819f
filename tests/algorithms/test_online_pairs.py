"""Pairs among a policy's own samples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignctl.algorithms.online_pairs import choose_pairs
from alignctl.config.on_policy import PairChoice
from alignctl.data.batch import Pairs

Pair = tuple[int, int, float]


def pairs_of(
    scores: list[float], groups: list[int], choice: PairChoice
) -> tuple[list[Pair], Pairs]:
    pairs, _ = choose_pairs(np.asarray(scores), np.asarray(groups), choice)
    found = zip(pairs.better.tolist(), pairs.worse.tolist(), pairs.share.tolist(), strict=True)
    return list(found), pairs


SCORES = [1.0, 3.0, 3.0, 2.0, 5.0, 5.0, 0.0]
GROUPS = [0, 0, 0, 1, 1, 1, 2]


def test_the_best_and_the_worst_by_hand() -> None:
    """1, 3, 3: the first 3 over the 1. 2, 5, 5: the first 5 over the 2. A single one: none."""
    found, pairs = pairs_of(SCORES, GROUPS, "best_worst")
    assert found == [(1, 0, 1), (4, 3, 1)]
    assert pairs.num_prompts == 2


def test_all_strict_pairs_by_hand() -> None:
    """The two 3 over the 1, half each; likewise the two 5 over the 2. Equal ones are no pair."""
    found, pairs = pairs_of(SCORES, GROUPS, "all")
    assert found == [(1, 0, 0.5), (2, 0, 0.5), (4, 3, 0.5), (5, 3, 0.5)]
    assert pairs.num_prompts == 2


@pytest.mark.parametrize("choice", ["best_worst", "all"])
def test_a_prompt_without_a_pair_does_not_move_the_others(choice: PairChoice) -> None:
    """Prompt 0 has only ties. The pair is that of samples 3 and 2, not of the samples before."""
    pairs, skipped = choose_pairs(
        np.asarray([1.0, 1.0, 0.0, 4.0]), np.asarray([0, 0, 1, 1]), choice
    )
    assert (pairs.better.tolist(), pairs.worse.tolist(), skipped) == ([3], [2], 1)


@pytest.mark.parametrize("choice", ["best_worst", "all"])
def test_ties_everywhere_give_nothing(choice: PairChoice) -> None:
    pairs, skipped = choose_pairs(np.ones(4), np.asarray([0, 0, 1, 1]), choice)
    assert (len(pairs.better), len(pairs.worse), pairs.num_prompts, skipped) == (0, 0, 0, 2)


def test_the_best_of_those_that_may_win_by_hand() -> None:
    """5 was cut: 3 is better than 2, and than 1, which was cut too. Of prompt 1 none may win."""
    scores = np.asarray([5.0, 3.0, 2.0, 1.0, 4.0, 0.0])
    groups = np.asarray([0, 0, 0, 0, 1, 1])
    may_win = np.asarray([False, True, True, False, False, False])
    found, skipped = choose_pairs(scores, groups, "best_worst", may_win)
    assert (found.better.tolist(), found.worse.tolist(), skipped) == ([1], [3], 1)
    found, skipped = choose_pairs(scores, groups, "all", may_win)
    assert list(zip(found.better.tolist(), found.worse.tolist(), strict=True)) == [
        (1, 2),
        (1, 3),
        (2, 3),
    ]
    assert skipped == 1


def test_the_only_one_that_may_win_and_is_the_worst_makes_no_pair() -> None:
    found, skipped = choose_pairs(
        np.asarray([2.0, 1.0]), np.asarray([0, 0]), "best_worst", np.asarray([False, True])
    )
    assert (len(found.better), skipped) == (0, 1)


samples = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([-1.0, 0.0, 0.5, 2.0])), min_size=1, max_size=12
)


@given(samples, st.sampled_from(["best_worst", "all"]))
def test_every_pair_is_right_and_every_prompt_weighs_one(
    drawn: list[tuple[int, float]], choice: PairChoice
) -> None:
    groups, scores = [group for group, _ in drawn], [score for _, score in drawn]
    found, pairs = pairs_of(scores, groups, choice)
    by_prompt: dict[int, float] = {}
    for better, worse, share in found:
        assert groups[better] == groups[worse]
        assert scores[better] > scores[worse]
        by_prompt[groups[better]] = by_prompt.get(groups[better], 0) + share
    with_pair = {g for g in groups if len({s for h, s in drawn if h == g}) > 1}
    assert by_prompt == pytest.approx(dict.fromkeys(with_pair, 1.0))
    assert pairs.num_prompts == len(with_pair)


@given(samples, st.integers(0, 3))
def test_groups_are_independent(drawn: list[tuple[int, float]], changed: int) -> None:
    """Other scores in one group leave the pairs of the others as they are."""
    groups, scores = [group for group, _ in drawn], [score for _, score in drawn]
    others = [0.0 if group == changed else score for group, score in drawn]
    before, after = pairs_of(scores, groups, "all")[0], pairs_of(others, groups, "all")[0]
    assert [p for p in before if groups[p[0]] != changed] == after
