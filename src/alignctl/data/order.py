"""Which sequences an optimizer step takes, and the micro batches of a rank: pure functions.

Everything follows from (seed, step), so a resumed run needs no state but its step number.
"""

import math
from collections.abc import Collection, Iterable
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from alignctl.data.batch import TokenBatch
from alignctl.data.micro_batches import dealt_micro_batches
from alignctl.data.packing import pack, starts


class Sequences(Protocol):
    """The sequences of a split."""

    @property
    def num_sequences(self) -> int:
        """Sequences of one pass over the data."""

    def taken(self, *, global_batch_size: int, seed: int, step: int) -> NDArray[np.int64]:
        """Choose the sequences of one optimizer step `[global_batch_size]`."""

    def lengths(self, sequences: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the input tokens of some sequences, as many as are computed."""

    def batch(self, sequences: Iterable[int]) -> TokenBatch:
        """Build one micro batch of whole sequences; of none: a filler."""


class Share(NamedTuple):
    """What a blend takes of one source in each pass.

    Attributes:
        size: Sequences of the source; those of a split lie source by source.
        taken: Sequences of it in a pass: more than there are, if some come several times.
    """

    size: int
    taken: int


_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


@lru_cache(maxsize=2)
def epoch_order(num_sequences: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Make a permutation of all sequences `[S]` for one epoch; read-only.

    Sequences are sorted by a hash of their number. numpy's own shuffles may change from one version
    to another, and with them the course of a resumed run.
    """
    key = _mixed(np.asarray([(seed * _GOLDEN + epoch) & _MASK], np.uint64))
    hashes = _mixed(np.arange(num_sequences, dtype=np.uint64) + _mixed(key))
    order = np.argsort(hashes, kind="stable").astype(np.int64)
    order.flags.writeable = False
    return order


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply SplitMix64's output function: a bijection of 64-bit integers without visible order."""
    values = values + np.uint64(_GOLDEN)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def share_out(sizes: Collection[int], weights: Collection[float]) -> tuple[Share, ...]:
    """Share out the sequences of a pass, as many as there are, among sources by their weights.

    What is left of the whole numbers goes to the largest remainders; each source has one at least.

    Args:
        sizes: Sequences of each source, 1 or more; empty where there is no blend.
        weights: The weight of each, above 0; empty where a blend's order is not wanted.

    Returns:
        A share for each source; none if either is empty.
    """
    if not sizes or not weights:
        return ()
    exact = [Fraction(str(weight)) for weight in weights]  # 0.1 is a tenth, though no float is
    quotas = [sum(sizes) * weight / sum(exact) for weight in exact]
    counts = [max(1, math.floor(quota)) for quota in quotas]
    while missing := sum(sizes) - sum(counts):
        unit = 1 if missing > 0 else -1
        places = [place for place, count in enumerate(counts) if count + unit > 0]
        counts[max(places, key=lambda place: unit * (quotas[place] - counts[place]))] += unit
    return tuple(Share(*each) for each in zip(sizes, counts, strict=True))


@lru_cache(maxsize=2)
def blended_order(shares: tuple[Share, ...], seed: int, epoch: int) -> NDArray[np.int64]:
    """Order the sequences of one epoch of a blend, as many as there are `[S]`; read-only.

    Of each source it has those that come next in the source's own endless run of shuffled epochs.
    """
    first = starts(np.asarray([share.size for share in shares]))
    taken = [
        start
        + step_sequences(
            share.size,
            global_batch_size=share.taken,
            seed=seed + ((place + 1) << 32),  # far from the seeds of other runs
            step=epoch,
        )
        for place, (start, share) in enumerate(zip(first, shares, strict=False))
    ]
    order: NDArray[np.int64] = np.concatenate(taken)
    order = order[epoch_order(len(order), seed, epoch)]
    order.flags.writeable = False
    return order


def step_sequences(
    num_sequences: int,
    *,
    global_batch_size: int,
    seed: int,
    step: int,
    shares: tuple[Share, ...] = (),
) -> NDArray[np.int64]:
    """Choose the sequences of one optimizer step `[global_batch_size]`.

    They are cut from the endless run of shuffled epochs; a step at the end of an epoch goes on with
    the next one. So no sequence is left out or taken twice within an epoch; of a blend, each source
    has its share of every epoch.

    Args:
        num_sequences: Sequences of the training split.
        global_batch_size: Sequences per step, over all ranks.
        seed: The run's seed.
        step: Steps done before this one: 0 for the first.
        shares: Of a blend, what is taken of each source in an epoch, num_sequences in all.
    """
    taken = []
    position = step * global_batch_size
    end = position + global_batch_size
    while position < end:
        epoch, start = divmod(position, num_sequences)
        if shares:
            order = blended_order(shares, seed, epoch)
        else:
            order = epoch_order(num_sequences, seed, epoch)
        part = order[start : start + end - position]
        taken.append(part)
        position += len(part)
    return np.concatenate(taken)


def train_batches(
    split: Sequences,
    *,
    step: int,
    seed: int,
    global_batch_size: int,
    micro_batch_size: int,
    dp_rank: int,
    dp_size: int,
    capacity: int | None = None,
) -> list[TokenBatch]:
    """Build the micro batches of one data-parallel rank for one optimizer step.

    Args:
        split: The training split.
        step: Steps done before this one.
        seed: The run's seed.
        global_batch_size: Sequences of the split per step; a multiple of micro_batch_size x
            dp_size, unless they are packed.
        micro_batch_size: Sequences per micro batch, as they are after packing.
        dp_rank: This data-parallel rank.
        dp_size: Data-parallel ranks.
        capacity: The step's sequences are packed into longer ones of at most so many tokens; None:
            they stay as they are.

    Returns:
        As many batches on every rank; a rank that runs out ends with fillers. Without packing,
        global_batch_size / (micro_batch_size x dp_size).
    """
    assert capacity is not None or global_batch_size % (micro_batch_size * dp_size) == 0
    sequences = split.taken(global_batch_size=global_batch_size, seed=seed, step=step)
    laid = _laid(split, sequences, capacity)
    lengths = [int(split.lengths(each).sum()) for each in laid]
    shares = dealt_micro_batches(
        lengths, micro_batch_size=micro_batch_size, dp_rank=dp_rank, dp_size=dp_size
    )
    return [_batch(split, [laid[place] for place in share]) for share in shares]


def validation_batches(
    split: Sequences,
    *,
    micro_batch_size: int,
    dp_rank: int,
    dp_size: int,
    max_sequences: int | None = None,
    capacity: int | None = None,
) -> list[TokenBatch]:
    """Build one rank's micro batches; those of all ranks hold each sequence exactly once.

    Args:
        split: The held-out split.
        micro_batch_size: Sequences per micro batch, as they are after packing.
        dp_rank: This data-parallel rank.
        dp_size: Data-parallel ranks.
        max_sequences: Only the first so many sequences, or all: the same ones at every layout.
        capacity: As `train_batches` has it.

    Returns:
        As many batches on every rank; a rank that runs out ends with fillers.
    """
    total = split.num_sequences
    if max_sequences is not None:
        total = min(total, max_sequences)
    laid = _laid(split, np.arange(total), capacity)
    own, most = laid[dp_rank::dp_size], -(-len(laid) // dp_size)
    return [
        _batch(split, own[start : start + micro_batch_size])
        for start in range(0, most, micro_batch_size)
    ]


def _laid(
    split: Sequences, sequences: NDArray[np.int64], capacity: int | None
) -> list[NDArray[np.int64]]:
    """Pack sequences of a split into those of a forward pass, each an array of their numbers."""
    if capacity is None:
        return list(sequences[:, None])
    order, bounds = pack(split.lengths(sequences), capacity)
    return np.split(sequences[order], bounds[1:-1])


def _batch(split: Sequences, laid: list[NDArray[np.int64]]) -> TokenBatch:
    return split.batch(number for each in laid for number in each.tolist())
