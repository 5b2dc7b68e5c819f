"""What a reward may return, and what counts as a failure."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from alignctl.rewards.results import read_result, read_results


@pytest.mark.parametrize(
    ("value", "score"),
    [
        (1, 1.0),
        (0.5, 0.5),
        (True, 1.0),
        (np.float32(0.5), 0.5),
        (np.bool_(True), 1.0),
        (torch.tensor(0.25), 0.25),
        (np.asarray([2.0]), 2.0),
        (Fraction(1, 4), 0.25),
        ({"score": 2}, 2.0),
    ],
)
def test_a_number_of_any_kind_is_a_score(value: object, score: float) -> None:
    found = read_result(value)
    assert found.score == score
    assert type(found.score) is float
    assert found.failure is None


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "score is None, where a finite number of at most 1e+09 is expected"),
        ("1.0", "score is '1.0', where"),
        (float("nan"), "score is nan, where"),
        (float("-inf"), "score is -inf, where"),
        (10**400, "score is 1000"),
        (2e9, "score is 2000000000.0, where"),
        ([1.0], "score is [1.0], where"),
        (np.zeros(2), "score is array([0., 0.]), where"),
        (1j, "score is 1j, where"),
        ({}, "no key 'score' in what it returned: []"),
        ({"reward": 1}, "no key 'score' in what it returned: ['reward']"),
        ({"score": None}, "score is None, where"),
        ({"score": 1, "length": "long"}, "length is 'long', where"),
        ({"score": 1, "a b": 2}, "metric 'a b': a name is letters, digits and _, 40 at most"),
        ({"score": 1, "std": 2}, "metric 'std': a name is"),
        ({"score": 1, **{f"m{n}": n for n in range(20)}}, "20 metrics beside the score; 19 are"),
    ],
)
def test_anything_else_is_a_failure_that_says_what_it_was(value: object, why: str) -> None:
    found = read_result(value)
    assert found.score is None
    assert found.failure is not None
    assert found.failure.startswith(why)
    assert len(found.failure) <= 500


def test_other_numbers_beside_the_score_are_metrics() -> None:
    found = read_result({"score": 0.5, "words": 3, "is_short": True})
    assert found.metrics == {"words": 3.0, "is_short": 1.0}


def test_a_list_has_as_many_scores_as_answers() -> None:
    assert [each.score for each in read_results([1, {"score": 2}], 2)] == [1.0, 2.0]
    assert [each.score for each in read_results(np.asarray([1.0, 2.0]), 2)] == [1.0, 2.0]
    mixed = read_results((1, float("nan"), 3), 3)
    assert [each.score for each in mixed] == [1.0, None, 3.0]
    for value, why in [
        ([1.0], "it returned 1 scores for 2 answers"),
        (1.0, "it returned 1.0, where a list is expected"),
        (None, "it returned None, where a list is expected"),
        ("ab", "it returned 'ab', where a list is expected"),
    ]:
        assert [each.failure for each in read_results(value, 2)] == [why, why]
