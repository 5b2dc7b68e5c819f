"""Best-fit-decreasing bin packing: whole documents into sequences of a fixed number of tokens."""

from bisect import bisect_left, insort

import numpy as np
from numpy.typing import NDArray


def pack(lengths: NDArray[np.int64], capacity: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pack documents into bins; the longest first, each into the fullest bin that has room.

    Deterministic: ties go by document number. The search is a bisection over the distinct free
    rooms, of which there are at most `capacity`.

    Args:
        lengths: Tokens of each document `[D]`, from 1 to `capacity`.
        capacity: Tokens of a bin.

    Returns:
        Document numbers `[D]`, bin after bin, in order inside a bin; and where each bin starts in
        them `[bins + 1]`.
    """
    if len(lengths) and (lengths.min() < 1 or lengths.max() > capacity):
        raise ValueError(f"document lengths must be from 1 to the capacity of {capacity}")
    bin_of = np.empty(len(lengths), np.int64)
    rooms: list[int] = []
    bins_with: dict[int, list[int]] = {}
    num_bins = 0
    for document in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[document])
        place = bisect_left(rooms, length)
        if place == len(rooms):
            number, room = num_bins, capacity
            num_bins += 1
        else:
            room = rooms[place]
            number = bins_with[room].pop()
            if not bins_with[room]:
                del rooms[place], bins_with[room]
        bin_of[document] = number
        left = room - length
        if left in bins_with:
            bins_with[left].append(number)
        elif left:
            insort(rooms, left)
            bins_with[left] = [number]
    order = np.argsort(bin_of, kind="stable").astype(np.int64)
    return order, starts(np.bincount(bin_of, minlength=num_bins))


def starts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Compute where each run of `counts` elements starts, and the last one ends `[len + 1]`."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
