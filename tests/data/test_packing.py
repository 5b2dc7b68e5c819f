"""Packing: every document once, never beyond the capacity, as tight as best fit promises."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignctl.data.packing import pack

CAPACITY = 16
LENGTHS = st.lists(st.integers(1, CAPACITY), max_size=60)


def bins_of(lengths: list[int]) -> list[list[int]]:
    order, bounds = pack(np.asarray(lengths, np.int64), CAPACITY)
    return [part.tolist() for part in np.split(order, bounds[1:-1])] if lengths else []


def naive_best_fit_decreasing(lengths: list[int]) -> int:
    """Number of bins of the textbook algorithm, which looks at every bin."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=lambda i: rooms[i])] -= length
        else:
            rooms.append(CAPACITY - length)
    return len(rooms)


def test_a_small_case_by_hand() -> None:
    """10 and 6 fill a bin, 9 and 5 leave 2 free, which takes the 2."""
    assert bins_of([5, 10, 2, 9, 6]) == [[1, 4], [0, 2, 3]]


@given(LENGTHS)
def test_every_document_is_in_one_bin_and_no_bin_overflows(lengths: list[int]) -> None:
    bins = bins_of(lengths)
    assert sorted(number for members in bins for number in members) == list(range(len(lengths)))
    assert all(0 < sum(lengths[number] for number in members) <= CAPACITY for members in bins)
    assert all(members == sorted(members) for members in bins)


@given(LENGTHS)
def test_it_needs_as_many_bins_as_textbook_best_fit_decreasing(lengths: list[int]) -> None:
    bins = bins_of(lengths)
    assert len(bins) == naive_best_fit_decreasing(lengths)
    fills = sorted(sum(lengths[number] for number in members) for members in bins)
    # First fit's bound: no two bins could have been one.
    assert len(fills) < 2 or fills[0] + fills[1] > CAPACITY


@given(LENGTHS)
def test_the_same_documents_give_the_same_bins(lengths: list[int]) -> None:
    assert bins_of(lengths) == bins_of(list(lengths))


@pytest.mark.parametrize("lengths", [[CAPACITY + 1], [0]])
def test_a_length_out_of_range_is_an_error(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="from 1 to the capacity of 16"):
        bins_of(lengths)
