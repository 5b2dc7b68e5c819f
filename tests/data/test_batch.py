"""TokenBatch: shifted targets, boundaries, positions."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from alignctl.data.batch import IGNORE, Document, TokenBatch


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
