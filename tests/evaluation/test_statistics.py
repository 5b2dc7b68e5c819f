"""Intervals, and what several attempts are worth."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignctl.evaluation.statistics import bootstrap, pass_at_k, wilson


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_wilsons_interval_is_that_of_the_literature(
    successes: int, total: int, low: float, high: float
) -> None:
    """81 of 263 is Newcombe's (1998) example; of 0 it is z^2 / (n + z^2) = 3.8415 / 13.8415."""
    assert wilson(successes, total) == pytest.approx((low, high), abs=5e-5)


@given(
    st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))
)
def test_pass_at_k_is_the_share_of_choices_with_a_success(numbers: tuple[int, int, int]) -> None:
    n, c, k = numbers
    choices = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_resampled_intervals_are_the_same_every_time_and_hold_the_mean() -> None:
    """Of 400 coins the deviation of the mean is 0.025: the interval is about 0.5 +- 0.049."""
    values = [0.0, 1.0] * 200
    low, high = bootstrap(values)
    assert (low, high) == bootstrap(values)
    assert low == pytest.approx(0.451, abs=0.01)
    assert high == pytest.approx(0.549, abs=0.01)
    assert bootstrap([0.25]) == (0.25, 0.25)
