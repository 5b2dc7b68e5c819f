"""Batches: shifted targets, boundaries, positions; groups of answers and their pairs."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from alignctl.data.batch import (
    IGNORE,
    Document,
    PreferenceBatch,
    TokenBatch,
    count_computed,
    count_shared,
)


def document(tokens: list[int], supervised: list[bool], row: int) -> Document:
    return Document(np.asarray(tokens, np.int32), np.asarray(supervised, np.bool_), row)


def test_targets_are_the_next_tokens_and_never_cross_a_boundary() -> None:
    """Documents 1 2 3 and 4 5 give inputs 1 2 | 4 and targets 2 3 | 5; 2 is not supervised."""
    batch = TokenBatch.from_documents(
        [document([1, 2, 3], [False, False, True], 7), document([4, 5], [True, True], 9)]
    )
    assert batch.tokens.tolist() == [1, 2, 4]
    assert batch.targets.tolist() == [IGNORE, 3, 5]
    assert batch.pieces.boundaries == (0, 2, 3)
    assert batch.pieces.positions.tolist() == [0, 1, 0]
    assert batch.rows == (7, 9)
    assert (batch.num_tokens, batch.num_targets, batch.num_document_tokens) == (3, 2, 3)
    assert batch.targets_per_document.tolist() == [1, 1]
    assert batch.tokens.dtype == batch.targets.dtype == batch.pieces.positions.dtype == np.int64


def test_the_first_token_is_never_a_target_even_when_it_is_supervised() -> None:
    batch = TokenBatch.from_documents([document([4, 5], [True, False], 0)])
    assert batch.num_targets == 0


def test_no_documents_give_a_filler_without_targets() -> None:
    batch = TokenBatch.from_documents([])
    assert (batch.num_tokens, batch.num_targets, batch.rows) == (1, 0, (-1,))
    assert batch.pieces.positions.tolist() == [0]


@given(st.lists(st.lists(st.booleans(), min_size=2, max_size=9), min_size=1, max_size=6))
def test_the_learned_targets_are_the_supervised_tokens_after_each_first(
    masks: list[list[bool]],
) -> None:
    documents = [document(list(range(len(m))), m, row) for row, m in enumerate(masks)]
    batch = TokenBatch.from_documents(documents)
    assert batch.num_targets == sum(sum(mask[1:]) for mask in masks)
    learned = batch.targets != IGNORE
    assert (batch.targets[learned] == batch.tokens[learned] + 1).all()
    assert batch.pieces.positions.tolist() == batch.tokens.tolist()


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
    assert batch.pieces.boundaries == (0, 2, 5, 7)
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


@st.composite
def groups_of_documents(draw: st.DrawFn) -> list[list[Document]]:
    """Of two tokens: equal documents, one that begins another, nothing in common all come up."""
    texts = st.lists(st.tuples(st.integers(0, 1), st.booleans()), min_size=2, max_size=7)
    groups = draw(st.lists(st.lists(texts, min_size=1, max_size=4), min_size=1, max_size=3))
    rows = iter(range(12))
    return [
        [document([t for t, _ in text], [s for _, s in text], next(rows)) for text in group]
        for group in groups
    ]


@given(groups_of_documents())
def test_documents_that_share_are_read_as_if_each_stood_alone(groups: list[list[Document]]) -> None:
    batch = TokenBatch.sharing(groups)
    flat = [each for group in groups for each in group]
    alone = TokenBatch.from_documents(flat)
    places = batch.pieces.places
    assert batch.rows == alone.rows
    assert batch.pieces.document_lengths == alone.pieces.lengths
    assert batch.tokens[places].tolist() == alone.tokens.tolist()
    assert batch.targets[places].tolist() == alone.targets.tolist()
    assert batch.pieces.positions[places].tolist() == alone.pieces.positions.tolist()
    assert batch.targets_per_document.tolist() == alone.targets_per_document.tolist()
    assert batch.learned.tolist() == [p for p in places if batch.targets[p] != IGNORE]
    assert batch.num_document_tokens == alone.num_tokens
    assert batch.num_tokens == sum(map(count_computed, groups)) == len(set(places.tolist()))


@given(groups_of_documents())
def test_as_much_is_shared_as_is_alike_and_every_document_keeps_its_end(
    groups: list[list[Document]],
) -> None:
    """The first position that is not shared differs in input or target, or is somebody's last.

    Nothing is shared where that would spare less than an eighth of the tokens.
    """
    for group in groups:
        shared, alone = count_shared(group), [TokenBatch.from_documents([each]) for each in group]
        pairs = [list(zip(each.tokens, each.targets, strict=True)) for each in alone]
        assert all(each[:shared] == pairs[0][:shared] for each in pairs)
        assert all(len(each) > shared for each in pairs)
        ends = any(len(each) == shared + 1 for each in pairs)
        if shared:
            assert ends or len({each[shared] for each in pairs}) > 1
            assert 8 * shared * (len(group) - 1) >= sum(map(len, pairs))
            continue
        columns = list(zip(*(each[:-1] for each in pairs), strict=False))
        alike = next((n for n, c in enumerate(columns) if len(set(c)) > 1), len(columns))
        assert 8 * alike * (len(group) - 1) < sum(map(len, pairs)) or alike == 0


def test_all_of_a_prompt_but_its_last_token_is_shared() -> None:
    """Prompt 1 2 3, answers 4 and 5 6: its last token predicts a 4 for the one, a 5 for the other.

    Of a row of preferences every token is an input.
    """
    short = document([1, 2, 3, 4], [False, False, False, True], 0)
    long = document([1, 2, 3, 5, 6], [False, False, False, True, True], 1)
    batch = PreferenceBatch.from_groups([[short, long]], np.zeros(2), share_prompts=True)
    assert batch.tokens.tolist() == [1, 2, 3, 4, 3, 5, 6]
    assert batch.targets.tolist() == [IGNORE, IGNORE, 4, IGNORE, 5, 6, IGNORE]
    assert batch.pieces.boundaries == (0, 2, 4, 7)
    assert batch.pieces.parents == (-1, 0, 0)
    assert batch.pieces.positions.tolist() == [0, 1, 2, 3, 2, 3, 4]
    assert batch.pieces.ends == [3, 6]


def test_what_nobody_shares_is_laid_as_before() -> None:
    one = document([1, 2, 3], [True] * 3, 0)
    batch = TokenBatch.sharing([[one], [one]])
    assert batch.pieces.parents == ()
    assert batch.tokens.tolist() == TokenBatch.from_documents([one, one]).tokens.tolist()
