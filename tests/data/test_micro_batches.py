"""How micro batches are laid and dealt to ranks: laws that hold whatever is in them."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from alignctl.data.batch import Document, TokenBatch, count_computed
from alignctl.data.micro_batches import Batch, dealt_groups, dealt_micro_batches, partition


@given(st.lists(st.integers(1, 100), max_size=40), st.integers(1, 8))
def test_a_partition_gives_every_rank_its_share(lengths: list[int], num_ranks: int) -> None:
    hands = partition(lengths, num_ranks)
    assert sorted(place for hand in hands for place in hand) == list(range(len(lengths)))
    assert max(map(len, hands)) <= -(-len(lengths) // num_ranks)
    if len(lengths) % num_ranks == 0:
        assert len({len(hand) for hand in hands}) == 1


def test_a_partition_balances_tokens() -> None:
    """9 | 8, then 2 to the lighter, 1 to the heavier: 10 and 10."""
    assert partition([9, 8, 1, 2], 2) == [[0, 2], [1, 3]]


Group = tuple[int, list[int]]
"""Tokens of a prompt, and of each of the answers to it."""

GROUPS = st.lists(
    st.tuples(st.integers(1, 40), st.lists(st.integers(1, 30), min_size=1, max_size=9)),
    max_size=7,
)


def documents_of(groups: list[Group]) -> list[list[Document]]:
    """A document for each answer, numbered in a row; answers differ from their first token on."""
    numbers = iter(range(1000))
    made = []
    for group, (prompt, answers) in enumerate(groups):
        question, members = np.full(prompt, group, np.int32), []
        for answer, number in zip(answers, numbers, strict=False):
            tokens = np.concatenate([question, np.full(answer, 100 + number, np.int32)])
            members.append(Document(tokens, np.arange(len(tokens)) >= prompt, number))
        made.append(members)
    return made


def laid(groups: list[Group], *, most: int, dp_size: int) -> list[list[list[list[Document]]]]:
    """Documents of each part of a group, of each micro batch of each rank."""
    documents = documents_of(groups)
    by_number = {document.row: document for group in documents for document in group}

    def of(batch: Batch) -> list[list[Document]]:
        return [[by_number[member] for member in part] for part in batch]

    return [
        [
            of(batch)
            for batch in dealt_groups(
                [[document.row for document in group] for group in documents],
                lambda part: count_computed([by_number[member] for member in part]),
                micro_batch_size=1,
                micro_batch_tokens=most,
                dp_rank=rank,
                dp_size=dp_size,
            )
        ]
        for rank in range(dp_size)
    ]


@given(GROUPS, st.integers(0, 60), st.integers(1, 4))
def test_a_budget_of_tokens_is_kept(groups: list[Group], room: int, dp_size: int) -> None:
    """Every answer once, as many batches on every rank, none over the budget.

    A batch is counted as the engine computes it. A prompt and an answer take 69 tokens at most.
    """
    ranks = laid(groups, most=69 + room, dp_size=dp_size)
    assert len({len(batches) for batches in ranks}) == 1
    batches = [batch for each in ranks for batch in each]
    assert all(TokenBatch.sharing(batch).num_tokens <= 69 + room for batch in batches)
    rows = [document.row for batch in batches for part in batch for document in part]
    assert sorted(rows) == list(range(sum(len(answers) for _, answers in groups)))


@given(GROUPS, st.integers(0, 200), st.integers(1, 4))
def test_there_are_at_most_twice_as_many_batches_as_tokens_fill(
    groups: list[Group], room: int, dp_size: int
) -> None:
    """Where the longest answer takes half of one: a batch that it does not fit into is half full.

    So n batches that were not enough have more than n / 2 budgets of tokens, at most as many as the
    answers take one by one; dp_size more are tried next.
    """
    most = 2 * 69 + room
    ranks = laid(groups, most=most, dp_size=dp_size)
    apart = sum(prompt + answer - 1 for prompt, answers in groups for answer in answers)
    assert dp_size * len(ranks[0]) < 2 * apart / most + dp_size or not groups


@given(GROUPS, st.integers(1, 4))
def test_a_group_is_whole_where_all_groups_are_small(groups: list[Group], dp_size: int) -> None:
    """Ten times what the largest group takes: what the emptiest batch has no room for is cut."""
    assume(groups)
    documents = documents_of(groups)
    most = 10 * max(map(count_computed, documents)) * len(groups)
    ranks = laid(groups, most=most, dp_size=dp_size)
    assert [len(batches) for batches in ranks] == [1] * dp_size
    if dp_size == 1:
        assert len(ranks[0][0]) == len(groups)


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(50, 300), st.integers(1, 4)
)
def test_what_is_never_cut_fills_few_batches(lengths: list[int], most: int, dp_size: int) -> None:
    """Of things alone: fewer than twice what tokens fill, or one for each longer than half."""
    ranks = [
        dealt_micro_batches(
            lengths, micro_batch_size=1, micro_batch_tokens=most, dp_rank=rank, dp_size=dp_size
        )
        for rank in range(dp_size)
    ]
    batches = [batch for each in ranks for batch in each]
    assert len({len(each) for each in ranks}) == 1
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    assert all(sum(lengths[place] for place in batch) <= most for batch in batches)
    fewest = max(2 * sum(lengths) / most, sum(2 * length > most for length in lengths))
    assert len(batches) < fewest + dp_size


def test_one_large_group_is_cut_in_even_parts_for_two_ranks() -> None:
    """Eight answers of 10 tokens to a prompt of 21: 100 tokens; twice 60 are cut, not 95 and 35.

    Each part has the prompt's 20 tokens that are shared, and four answers.
    """
    (first,), (second,) = laid([(21, [10] * 8)], most=95, dp_size=2)
    assert [len(part) for part in first + second] == [4, 4]
    assert TokenBatch.sharing(first).num_tokens == TokenBatch.sharing(second).num_tokens == 60


def test_short_answers_fill_up_what_long_ones_leave() -> None:
    """40 beside 10, 30 beside 20: two batches of 50 by tokens, where a count of two has 70."""
    found = dealt_micro_batches(
        [40, 30, 10, 20], micro_batch_size=9, micro_batch_tokens=50, dp_rank=0, dp_size=1
    )
    assert sorted(map(sorted, found)) == [[0, 2], [1, 3]]


def test_a_budget_that_cannot_hold_an_answer_is_our_mistake() -> None:
    """The configuration refuses it."""
    with pytest.raises(AssertionError):
        laid([(10, [5])], most=13, dp_size=1)
