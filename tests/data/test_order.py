"""The order of sequences: a function of seed and step, the same at every layout.

Of a blend, too: there the law of an epoch is that each source has its share of it.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignctl.data.batch import TokenBatch
from alignctl.data.order import (
    Share,
    blended_order,
    epoch_order,
    share_out,
    step_sequences,
    train_batches,
    validation_batches,
)
from alignctl.data.packing import starts
from alignctl.data.store import Split


def split_of(lengths: list[int]) -> Split:
    """One document per sequence; every token of document d is d, so that batches show it."""
    counts = np.asarray(lengths, np.int64) + 1
    numbers = np.arange(len(lengths))
    tokens = np.repeat(numbers, counts).astype(np.int32)
    return Split(
        tokens=tokens,
        supervised=np.ones(len(tokens), np.bool_),
        offsets=starts(counts),
        members=numbers,
        bounds=np.arange(len(lengths) + 1),
    )


def rows(batches: list[TokenBatch]) -> list[int]:
    return [row for batch in batches for row in batch.rows if row >= 0]


@given(st.integers(1, 40), st.integers(0, 2**63), st.integers(1, 17))
def test_every_sequence_comes_once_per_epoch(num: int, seed: int, global_batch_size: int) -> None:
    """The steps of `global_batch_size` epochs end exactly at an epoch's end."""
    taken = np.concatenate(
        [
            step_sequences(num, global_batch_size=global_batch_size, seed=seed, step=step)
            for step in range(num)
        ]
    )
    epochs = taken.reshape(global_batch_size, num)
    assert all(sorted(epoch) == list(range(num)) for epoch in epochs.tolist())


def test_the_order_changes_with_seed_and_epoch_and_never_between_releases() -> None:
    """The numbers pin the order: another one would change the course of resumed runs."""
    orders = [epoch_order(50, seed, epoch).tolist() for seed in (1, 2) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert epoch_order(8, 1234, 0).tolist() == [6, 7, 2, 4, 3, 5, 1, 0]


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=20),
    st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (1, 4)]),
    st.integers(0, 30),
)
def test_a_step_has_the_same_sequences_at_every_layout(
    lengths: list[int], layout: tuple[int, int], step: int
) -> None:
    split = split_of(lengths)
    dp_size, micro_batch_size = layout
    parts = [
        train_batches(
            split,
            step=step,
            seed=5,
            global_batch_size=4,
            micro_batch_size=micro_batch_size,
            dp_rank=rank,
            dp_size=dp_size,
        )
        for rank in range(dp_size)
    ]
    assert all(len(part) == 4 // (dp_size * micro_batch_size) for part in parts)
    expected = step_sequences(len(lengths), global_batch_size=4, seed=5, step=step)
    assert sorted(row for part in parts for row in rows(part)) == sorted(expected.tolist())


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=20),
    st.integers(1, 12),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_a_packed_step_has_the_rows_of_an_unpacked_one_in_fewer_sequences(
    lengths: list[int], global_batch_size: int, dp_size: int, micro_batch_size: int
) -> None:
    """Whatever their number: a batch of rows need not divide by anything."""
    split = split_of(lengths)
    parts = [
        train_batches(
            split,
            step=2,
            seed=5,
            global_batch_size=global_batch_size,
            micro_batch_size=micro_batch_size,
            dp_rank=rank,
            dp_size=dp_size,
            capacity=10,
        )
        for rank in range(dp_size)
    ]
    assert len({len(part) for part in parts}) == 1
    assert all(b.num_tokens <= 10 * micro_batch_size for part in parts for b in part)
    expected = step_sequences(
        len(lengths), global_batch_size=global_batch_size, seed=5, step=2
    ).tolist()
    assert sorted(row for part in parts for row in rows(part)) == sorted(expected)
    learned = sum(batch.num_targets for part in parts for batch in part)
    assert learned == sum(lengths[row] for row in expected)


def test_a_steps_rows_are_packed_into_few_sequences() -> None:
    """8 rows of 24 tokens in all fill three sequences of 8: two micro batches of two at most."""
    split = split_of([5, 3, 2, 6, 4, 1, 1, 2])

    def of(capacity: int | None) -> list[int]:
        batches = train_batches(
            split,
            step=0,
            seed=0,
            global_batch_size=8,
            micro_batch_size=2,
            dp_rank=0,
            dp_size=1,
            capacity=capacity,
        )
        return [batch.num_tokens for batch in batches]

    assert of(8) == [16, 8]
    assert len(of(None)) == 4


@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_a_rank_gets_the_same_sequences_at_every_micro_batch_size(micro_batch_size: int) -> None:
    split = split_of([3, 1, 4, 1, 5, 9, 2, 6])

    def of(size: int) -> list[int]:
        return rows(
            train_batches(
                split,
                step=1,
                seed=0,
                global_batch_size=8,
                micro_batch_size=size,
                dp_rank=1,
                dp_size=2,
            )
        )

    assert of(micro_batch_size) == of(4)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=20),
    st.integers(1, 5),
    st.integers(1, 4),
    st.none() | st.integers(1, 25),
    st.none() | st.integers(9, 20),
)
def test_validation_takes_each_sequence_once_with_as_many_batches_on_every_rank(
    lengths: list[int],
    dp_size: int,
    micro_batch_size: int,
    max_sequences: int | None,
    capacity: int | None,
) -> None:
    split = split_of(lengths)
    parts = [
        validation_batches(
            split,
            micro_batch_size=micro_batch_size,
            dp_rank=rank,
            dp_size=dp_size,
            max_sequences=max_sequences,
            capacity=capacity,
        )
        for rank in range(dp_size)
    ]
    assert len({len(part) for part in parts}) == 1
    expected = range(min(len(lengths), max_sequences or len(lengths)))
    assert sorted(row for part in parts for row in rows(part)) == list(expected)
    learned = sum(batch.num_targets for part in parts for batch in part)
    assert learned == sum(lengths[row] for row in expected)


# ---- blends ----

WEIGHT = st.floats(1e-3, 1e3)
SOURCES = st.lists(st.tuples(st.integers(1, 12), WEIGHT), min_size=2, max_size=4)
"""Sizes and weights of sources."""


def epochs_of(shares: tuple[Share, ...], seed: int, num_epochs: int) -> list[list[list[int]]]:
    """What some epochs take of each source, by numbers in that source."""
    ends = np.cumsum([share.size for share in shares])
    found = []
    for epoch in range(num_epochs):
        order = np.sort(blended_order(shares, seed, epoch))
        parts = np.split(order, np.searchsorted(order, ends[:-1]))
        found.append(
            [(p - e + s.size).tolist() for p, e, s in zip(parts, ends, shares, strict=True)]
        )
    return found


@pytest.mark.parametrize(
    ("sizes", "weights", "taken"),
    [
        ([100, 300], [3, 1], [300, 100]),
        ([100, 300], [1, 3], [100, 300]),
        ([10, 10], [0.7, 0.3], [14, 6]),
        ([2, 1], [1, 1], [2, 1]),  # 1.5 each: of equal remainders the first
        ([5, 5], [7, 6], [5, 5]),  # 5.4 and 4.6: the second has the larger remainder
        ([2, 2, 2], [1, 1, 58], [1, 1, 4]),  # 0.1, 0.1 and 5.8: each has one at least
        ([1, 1, 1], [1e9, 1e-9, 1e-9], [1, 1, 1]),
    ],
)
def test_a_pass_is_shared_out_by_weight(
    sizes: list[int], weights: list[float], taken: list[int]
) -> None:
    assert [share.taken for share in share_out(sizes, weights)] == taken


@given(SOURCES)
def test_a_share_is_its_weights_to_within_a_sequence(sources: list[tuple[int, float]]) -> None:
    sizes, weights = zip(*sources, strict=True)
    shares = share_out(sizes, weights)
    assert sum(share.taken for share in shares) == sum(sizes)
    assert min(share.taken for share in shares) >= 1
    quotas = [sum(sizes) * weight / sum(weights) for weight in weights]
    if min(quotas) >= 1:
        assert all(abs(s.taken - q) < 1 for s, q in zip(shares, quotas, strict=True))


@given(SOURCES, st.integers(0, 2**63))
def test_an_epoch_has_each_sources_share_and_all_come_equally_often(
    sources: list[tuple[int, float]], seed: int
) -> None:
    """In whole passes over a source each of its sequences comes once, so up to one more in all."""
    shares = share_out(*zip(*sources, strict=True))
    epochs = epochs_of(shares, seed, 5)
    for place, share in enumerate(shares):
        assert [len(epoch[place]) for epoch in epochs] == [share.taken] * 5
        taken = [number for epoch in epochs for number in epoch[place]]
        times = np.bincount(taken, minlength=share.size)
        assert len(times) == share.size
        assert times.max() - times.min() <= 1


@given(st.lists(st.integers(1, 12), min_size=2, max_size=4), WEIGHT, st.integers(0, 9))
def test_by_their_sizes_sources_are_passed_over_as_if_they_were_one(
    sizes: list[int], scale: float, epoch: int
) -> None:
    shares = share_out(sizes, [scale * size for size in sizes])
    assert sorted(blended_order(shares, 7, epoch).tolist()) == list(range(sum(sizes)))


@given(SOURCES, st.integers(1, 7))
def test_a_step_of_a_blend_follows_from_its_number_alone(
    sources: list[tuple[int, float]], global_batch_size: int
) -> None:
    """Whatever came before, steps cut the endless run of epochs."""
    shares = share_out(*zip(*sources, strict=True))
    size = sum(share.size for share in shares)
    whole = np.concatenate([blended_order(shares, 3, epoch) for epoch in range(global_batch_size)])
    order = partial(step_sequences, size, seed=3, shares=shares)
    for step in range(size)[::-1]:  # the last first: nothing is kept from one to the next
        cut = whole[step * global_batch_size : (step + 1) * global_batch_size]
        blended_order.cache_clear()
        assert order(global_batch_size=global_batch_size, step=step).tolist() == cut.tolist()


@given(SOURCES, st.sampled_from([(1, 1), (1, 2), (2, 1), (4, 1)]), st.none() | st.just(20))
def test_a_step_of_a_blend_is_the_same_at_every_layout(
    sources: list[tuple[int, float]], layout: tuple[int, int], capacity: int | None
) -> None:
    shares = share_out(*zip(*sources, strict=True))
    size = sum(share.size for share in shares)
    split = replace(split_of([1 + number % 7 for number in range(size)]), shares=shares)
    dp_size, micro_batch_size = layout
    found = [
        row
        for rank in range(dp_size)
        for row in rows(
            train_batches(
                split,
                step=6,
                seed=5,
                global_batch_size=4,
                micro_batch_size=micro_batch_size,
                dp_rank=rank,
                dp_size=dp_size,
                capacity=capacity,
            )
        )
    ]
    expected = step_sequences(size, global_batch_size=4, seed=5, step=6, shares=shares)
    assert sorted(found) == sorted(expected.tolist())


def test_the_order_of_a_blend_never_changes_between_releases() -> None:
    """Two sequences of one source, three times each; six of another, of which two come."""
    shares = (Share(2, 6), Share(6, 2))
    orders = [blended_order(shares, 1234, epoch).tolist() for epoch in range(3)]
    assert orders == [
        [3, 5, 1, 1, 0, 0, 0, 1],
        [1, 0, 0, 6, 4, 0, 1, 1],
        [0, 1, 1, 1, 0, 0, 7, 2],
    ]


def test_without_a_blend_there_is_nothing_to_share() -> None:
    assert share_out([], [1.0]) == share_out([3, 4], []) == ()
