"""Which sequences an optimizer step takes, and the micro batches of a rank: pure functions.

Everything follows from (seed, step), so a resumed run needs no state but its step number.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from alignctl.data.batch import TokenBatch
from alignctl.data.micro_batches import dealt_micro_batches
from alignctl.data.packing import pack


class Sequences(Protocol):
    """The sequences of a split."""

    @property
    def num_sequences(self) -> int:
        """Sequences of one pass over the data."""

    @property
    def is_drawn(self) -> bool:
        """True if sequences are already in the order of training, as many as that takes."""

    def lengths(self, sequences: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the input tokens of some sequences, as many as are computed."""

    def batch(self, sequences: Iterable[int]) -> TokenBatch:
        """Build one micro batch of whole sequences; of none: a filler."""


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


def step_sequences(
    num_sequences: int, *, global_batch_size: int, seed: int, step: int
) -> NDArray[np.int64]:
    """Choose the sequences of one optimizer step `[global_batch_size]`.

    They are cut from the endless run of shuffled epochs; a step at the end of an epoch goes on with
    the next one, so no sequence is left out or taken twice within an epoch.

    Args:
        num_sequences: Sequences of the training split.
        global_batch_size: Sequences per step, over all ranks.
        seed: The run's seed.
        step: Steps done before this one: 0 for the first.
    """
    taken = []
    position = step * global_batch_size
    end = position + global_batch_size
    while position < end:
        epoch, start = divmod(position, num_sequences)
        part = epoch_order(num_sequences, seed, epoch)[start : start + end - position]
        taken.append(part)
        position += len(part)
    return np.concatenate(taken)


def taken(split: Sequences, *, global_batch_size: int, seed: int, step: int) -> NDArray[np.int64]:
    """Choose the sequences of one step of a split `[global_batch_size]`: see `step_sequences`."""
    if split.is_drawn:
        return np.arange(step * global_batch_size, (step + 1) * global_batch_size)
    return step_sequences(
        split.num_sequences, global_batch_size=global_batch_size, seed=seed, step=step
    )


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
    sequences = taken(split, global_batch_size=global_batch_size, seed=seed, step=step)
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
