"""Batches: shifted targets, boundaries, positions; groups of answers and their pairs."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from alignctl.data.batch import IGNORE, Document, PreferenceBatch, TokenBatch


def document(tokens: list[int], supervised: list[bool], row: int) -> Document:
    return Document(np.asarray(tokens, np.int32), np.asarray(supervised, np.bool_), row)


def test_targets_are_the_next_tokens_and_never_cross_a_boundary() -> None:
    """Documents 1 2 3 and 4 5 give inputs 1 2 | 4 and targets 2 3 | 5; 2 is not supervised."""
    batch = TokenBatch.from_documents(
        [document([1, 2, 3], [False, False, True], 7), document([4, 5], [True, True], 9)]
    )
    assert batch.tokens.tolist() == [1, 2, 4]
    assert batch.targets.tolist() == [IGNORE, 3, 5]
    assert batch.cu_seqlens == (0, 2, 3)
    assert batch.positions.tolist() == [0, 1, 0]
    assert batch.rows == (7, 9)
    assert (batch.num_tokens, batch.num_targets, batch.max_seqlen) == (3, 2, 2)
    assert batch.targets_per_document.tolist() == [1, 1]
    assert batch.tokens.dtype == batch.targets.dtype == batch.positions.dtype == np.int64


def test_the_first_token_is_never_a_target_even_when_it_is_supervised() -> None:
    batch = TokenBatch.from_documents([document([4, 5], [True, False], 0)])
    assert batch.num_targets == 0


def test_no_documents_give_a_filler_without_targets() -> None:
    batch = TokenBatch.from_documents([])
    assert (batch.num_tokens, batch.num_targets, batch.rows) == (1, 0, (-1,))
    assert batch.positions.tolist() == [0]


@given(st.lists(st.lists(st.booleans(), min_size=2, max_size=9), min_size=1, max_size=6))
def test_the_learned_targets_are_the_supervised_tokens_after_each_first(
    masks: list[list[bool]],
) -> None:
    documents = [document(list(range(len(m))), m, row) for row, m in enumerate(masks)]
    batch = TokenBatch.from_documents(documents)
    assert batch.num_targets == sum(sum(mask[1:]) for mask in masks)
    learned = batch.targets != IGNORE
    assert (batch.targets[learned] == batch.tokens[learned] + 1).all()
    assert batch.positions.tolist() == batch.tokens.tolist()


def test_every_token_of_an_answer_is_an_input() -> None:
    """So that the last one, EOS, can be read by a reward model; it has no target of its own."""
    batch = PreferenceBatch.from_groups(
        [
            [document([1, 2], [False, True], 4), document([1, 3, 2], [False, True, True], 5)],
            [document([7, 8], [False, True], 6)],
        ],
        np.asarray([1.0, 0.0, 2.0]),
    )
    assert batch.tokens.tolist() == [1, 2, 1, 3, 2, 7, 8]
    assert batch.targets.tolist() == [2, IGNORE, 3, 2, IGNORE, 8, IGNORE]
    assert batch.cu_seqlens == (0, 2, 5, 7)
    assert (batch.groups, batch.rows) == ((0, 2, 3), (4, 5, 6))


def test_pairs_stay_inside_a_group_and_share_its_weight() -> None:
    """Group 0 orders its three answers in two ways (two are a tie); group 1 has one answer."""
    one = document([1, 2], [False, True], 0)
    batch = PreferenceBatch.from_groups([[one] * 3, [one]], np.asarray([0.5, 0.9, 0.5, 7.0]))
    pairs = batch.pairs
    assert pairs.better.tolist() == [1, 1]
    assert pairs.worse.tolist() == [0, 2]
    assert pairs.share.tolist() == [0.5, 0.5]
    assert pairs.num_prompts == 1


def test_a_filler_of_preferences_is_in_no_group() -> None:
    for batch in (PreferenceBatch.filler(), PreferenceBatch.from_groups([], np.zeros(0))):
        assert (batch.num_tokens, batch.groups, batch.rows) == (1, (0,), (-1,))
        assert batch.pairs.num_prompts == len(batch.pairs.better) == 0
