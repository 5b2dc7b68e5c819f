"""Prepared preferences on disk: whole groups in every batch, at every layout."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignctl.data.batch import PreferenceBatch
from alignctl.data.order import step_sequences, train_batches, validation_batches
from alignctl.data.packing import starts
from alignctl.data.preference_store import (
    PreferenceData,
    PreferenceSplit,
    PreferenceSplitSummary,
    PreferenceSummary,
)
from alignctl.errors import UserError


def split_of(sizes: list[int]) -> PreferenceSplit:
    """Groups of so many documents; document d has d % 3 + 2 tokens and the score d."""
    count = sum(sizes)
    lengths = np.arange(count) % 3 + 2
    return PreferenceSplit(
        tokens=np.repeat(np.arange(count), lengths).astype(np.int32),
        supervised=np.ones(int(lengths.sum()), np.bool_),
        offsets=starts(lengths),
        members=np.arange(count),
        bounds=starts(np.asarray(sizes)),
        scores=np.arange(count, dtype=np.float64),
    )


def test_a_batch_holds_whole_groups_with_their_scores() -> None:
    split = split_of([2, 3, 2])
    batch = split.batch([2, 0])
    assert batch.rows == (5, 6, 0, 1)
    assert batch.groups == (0, 2, 4)
    assert batch.scores.tolist() == [5, 6, 0, 1]
    assert batch.tokens.tolist() == [5, 5, 5, 5, 6, 6, 0, 0, 1, 1, 1]
    assert split.sequence_tokens.tolist() == [2 + 3, 4 + 2 + 3, 4 + 2]
    assert split.batch([]).rows == (-1,)


def test_the_first_prompts_best_and_worst_answers_are_what_is_shown() -> None:
    split = split_of([3, 2])
    assert {name: each.row for name, each in split.first_pair().items()} == {
        "better": 2,
        "worse": 0,
    }


def test_the_best_answers_are_groups_of_one_and_of_equals_the_first_counts() -> None:
    """Scores 0 1, 2 3 4 with 3 raised to 4, 5 6."""
    split = split_of([2, 3, 2])
    split.scores[3] = 4
    best = split.best_answers()
    assert best.members.tolist() == [1, 3, 6]
    assert best.batch([0, 2]).rows == (1, 6)
    assert best.sequence_tokens.tolist() == [3, 2, 2]


@given(
    st.lists(st.integers(2, 4), min_size=1, max_size=12),
    st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2), (4, 1)]),
    st.integers(0, 20),
)
def test_groups_are_never_cut_and_a_step_has_the_same_ones_at_every_layout(
    sizes: list[int], layout: tuple[int, int], step: int
) -> None:
    split = split_of(sizes)
    dp_size, micro_batch_size = layout
    found = []
    for rank in range(dp_size):
        for batch in train_batches(
            split,
            step=step,
            seed=3,
            global_batch_size=4,
            micro_batch_size=micro_batch_size,
            dp_rank=rank,
            dp_size=dp_size,
        ):
            assert isinstance(batch, PreferenceBatch)
            groups = np.split(np.asarray(batch.rows), batch.groups[1:-1])
            found += [tuple(group.tolist()) for group in groups]
    expected = step_sequences(len(sizes), global_batch_size=4, seed=3, step=step)
    documents = [tuple(range(a, b)) for a, b in zip(split.bounds, split.bounds[1:], strict=False)]
    assert sorted(found) == sorted(documents[group] for group in expected.tolist())


def test_a_rank_without_groups_left_gets_fillers() -> None:
    (batch,) = validation_batches(split_of([2]), micro_batch_size=1, dp_rank=1, dp_size=2)
    assert isinstance(batch, PreferenceBatch)
    assert batch.pairs.num_prompts == 0


SUMMARY = PreferenceSummary(
    rows=101,
    truncated=3,
    without_eos=0,
    dropped={"identical": 2, "tied": 0, "too_long": 1},
    files=("a.jsonl",),
    train=PreferenceSplitSummary(
        groups=90, documents=200, pairs=120, tokens=3000, answer_tokens=1000
    ),
    validation=None,
)


def test_a_summary_survives_json() -> None:
    assert PreferenceSummary.from_json(SUMMARY.to_json()) == SUMMARY


def test_a_summary_is_one_line_that_leaves_out_what_did_not_happen() -> None:
    assert SUMMARY.describe() == (
        "data: 101 rows, 3 truncated, 2 dropped: the same answer twice, 1 dropped: too long; "
        "90 prompts to train on, 0 held out; 200 answers, 120 pairs; "
        "1,000 of 3,000 tokens are answers"
    )


def test_a_folder_without_prepared_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a folder of prepared data"):
        PreferenceData.open(tmp_path)
