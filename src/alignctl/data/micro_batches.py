"""How sequences, or members of groups, are laid into micro batches and dealt to ranks."""

import heapq
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import groupby

import numpy as np

Batch = list[list[int]]
"""Groups, or parts of groups, in one micro batch."""

Cost = Callable[[Sequence[int]], int]
"""Counts the tokens that are computed for some members of one group."""


def partition(lengths: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Deal sequences to ranks: the same number to each, give or take one, and similar tokens.

    The longest first, each to the rank with the fewest tokens among those with room.

    Args:
        lengths: Tokens of each sequence.
        num_ranks: Data-parallel ranks.

    Returns:
        For each rank the places of its sequences in `lengths`, in rising order.
    """
    most = -(-len(lengths) // num_ranks)
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    # (tokens so far, rank): the least loaded rank is on top, ties go to the lower rank.
    open_ranks = [(0, rank) for rank in range(num_ranks)]
    for place in sorted(range(len(lengths)), key=lambda p: (-lengths[p], p)):
        tokens, rank = heapq.heappop(open_ranks)
        shares[rank].append(place)
        if len(shares[rank]) < most:
            heapq.heappush(open_ranks, (tokens + lengths[place], rank))
    return [sorted(share) for share in shares]


def dealt_micro_batches(
    lengths: Sequence[int],
    *,
    micro_batch_size: int,
    micro_batch_tokens: int | None = None,
    dp_rank: int,
    dp_size: int,
) -> list[list[int]]:
    """Deal things to ranks and return one rank's micro batches; each thing is on one rank only.

    Args:
        lengths: Tokens of each thing.
        micro_batch_size: Things in a micro batch.
        micro_batch_tokens: As `dealt_groups` has it, for things that are never cut.
        dp_rank: This data-parallel rank.
        dp_size: Data-parallel ranks.

    Returns:
        Places in `lengths`, of each micro batch; as many batches on every rank, so that one that
        runs out ends with empty ones.
    """
    if micro_batch_tokens is not None:
        dealt = dealt_groups(
            [[place] for place in range(len(lengths))],
            lambda one: lengths[one[0]],
            micro_batch_size=micro_batch_size,
            micro_batch_tokens=micro_batch_tokens,
            dp_rank=dp_rank,
            dp_size=dp_size,
        )
        return [[place for (place,) in batch] for batch in dealt]
    share = partition(lengths, dp_size)[dp_rank]
    most = -(-len(lengths) // dp_size)
    return [share[start : start + micro_batch_size] for start in range(0, most, micro_batch_size)]


def dealt_groups(
    groups: Sequence[Sequence[int]],
    tokens: Cost,
    *,
    micro_batch_size: int,
    micro_batch_tokens: int | None = None,
    dp_rank: int,
    dp_size: int,
) -> list[Batch]:
    """Deal members of groups, which cost less together, and return one rank's micro batches.

    By number, the members of all groups are put in one row, which is cut into micro batches of
    about the same number of members; a group lies in one batch or in adjacent ones. By tokens, see
    `_laid_by_tokens`.

    Args:
        groups: Members of each group.
        tokens: Counts those that are computed for some members of one group.
        micro_batch_size: Most members in a micro batch; without effect beside the next one.
        micro_batch_tokens: Most tokens in a micro batch, at least those of any member alone; None:
            members count.
        dp_rank: This data-parallel rank.
        dp_size: Data-parallel ranks.

    Returns:
        For each micro batch groups, or parts of groups; as many batches on every rank, some of
        which may be empty. Ranks have about as many tokens to compute.
    """
    if micro_batch_tokens is None:
        batches = _laid_by_number(groups, micro_batch_size, dp_size)
    else:
        batches = _laid_by_tokens(groups, tokens, micro_batch_tokens, dp_size)
    return [batches[place] for place in partition(_costs(batches, tokens), dp_size)[dp_rank]]


def _laid_by_number(groups: Sequence[Sequence[int]], most: int, dp_size: int) -> list[Batch]:
    row = [(group, member) for group, members in enumerate(groups) for member in members]
    count = -(-len(row) // (most * dp_size)) * dp_size
    return [
        [
            [member for _, member in part]
            for _, part in groupby(row[len(row) * n // count : len(row) * (n + 1) // count], _group)
        ]
        for n in range(count)
    ]


def _group(numbered: tuple[int, int]) -> int:
    return numbered[0]


def _costs(batches: Iterable[Batch], tokens: Cost) -> list[int]:
    return [sum(map(tokens, batch)) for batch in batches]


def _laid_by_tokens(
    groups: Sequence[Sequence[int]], tokens: Cost, most: int, dp_size: int
) -> list[Batch]:
    """Lay members into the fewest micro batches of at most so many tokens, a multiple of `dp_size`.

    Groups go into the emptiest batch, the most costly first, and only one that does not fit there
    is cut. If t is what the costliest member takes alone, and that is at most half of `most`, there
    are less than 2 / most batches for each token that members alone take, rounded up to the ranks.

    Where the last batches of ranks would be unequal, all of them may end earlier: of a few limits
    below `most` that are enough for as many batches, the one counts with which the busiest rank has
    least to do, or else `most`, by which fewest groups are cut.
    """
    cost = cache(tokens)
    wholes = [tuple(group) for group in groups]
    assert all(cost((member,)) <= most for group in wholes for member in group)
    wholes.sort(key=cost, reverse=True)
    total = sum(map(cost, wholes))
    count = -(-total // (most * dp_size)) * dp_size
    while (found := _poured(wholes, cost, most, count)) is None:
        count += dp_size

    def busiest(batches: list[Batch]) -> int:
        costs = _costs(batches, lambda part: cost(tuple(part)))
        return max(sum(costs[place] for place in share) for share in partition(costs, dp_size))

    if wholes and dp_size > 1:
        for limit in np.linspace(most, total / count, _LIMITS)[1:].tolist():
            other = _poured(wholes, cost, limit, count)
            found = found if other is None else min(found, other, key=busiest)
    return found


_LIMITS = 5
"""How many limits are tried."""


def _poured(
    groups: Sequence[tuple[int, ...]],
    cost: Callable[[tuple[int, ...]], int],
    limit: float,
    count: int,
) -> list[Batch] | None:
    """Put groups one after another into the emptiest of `count` batches, cut where one is full.

    Returns:
        The batches; None if a member does not fit into any.
    """
    batches: list[Batch] = [[] for _ in range(count)]
    emptiest = [(0, place) for place in range(count)]
    for group in groups:
        rest = group
        while rest:
            filled, place = emptiest[0]
            part = _longest_start(rest, cost, limit - filled)
            if not part:
                return None
            batches[place].append(list(part))
            heapq.heapreplace(emptiest, (filled + cost(part), place))
            rest = rest[len(part) :]
    return batches


def _longest_start(
    members: tuple[int, ...], cost: Callable[[tuple[int, ...]], int], room: float
) -> tuple[int, ...]:
    """Return all members if they cost at most `room`, or else as many of the first as do."""
    if cost(members) <= room:
        return members
    count = 0
    while cost(members[: count + 1]) <= room:
        count += 1
    return members[:count]
