"""The arrays on disk, and batches out of them."""

import errno
from pathlib import Path

import numpy as np
import pytest

from alignctl.data.batch import IGNORE
from alignctl.data.store import ArrayWriter, SFTData, Split, SplitSummary, Summary, explain_errors
from alignctl.errors import RunError, UserError

SPLIT = Split(
    tokens=np.asarray([1, 2, 3, 4, 5, 6, 7, 8, 9], np.int32),
    supervised=np.asarray([0, 1, 1, 0, 1, 0, 0, 0, 1], np.bool_),
    offsets=np.asarray([0, 3, 5, 9]),
    members=np.asarray([0, 2, 1]),
    bounds=np.asarray([0, 2, 3]),
)


def test_an_array_written_in_parts_is_a_plain_npy_file(tmp_path: Path) -> None:
    writer = ArrayWriter(tmp_path / "a.npy", np.int32)
    for part in ([1, 2], [], [3] * 1000):
        writer.append(np.asarray(part))
    writer.close()
    array = np.load(tmp_path / "a.npy", mmap_mode="r", allow_pickle=False)
    assert array.dtype == np.int32
    assert array.tolist() == [1, 2, *[3] * 1000]


def test_a_batch_holds_the_documents_of_its_sequences() -> None:
    """Sequence 0 is document 0 (1 2 3) and document 2 (6 7 8 9); sequence 1 is document 1."""
    batch = SPLIT.batch([0, 1])
    assert batch.tokens.tolist() == [1, 2, 6, 7, 8, 4]
    assert batch.targets.tolist() == [2, 3, IGNORE, IGNORE, 9, 5]
    assert batch.rows == (0, 2, 1)
    assert SPLIT.batch([]).rows == (-1,)
    assert SPLIT.sequence_tokens.tolist() == [5, 1]


def test_a_summary_survives_json() -> None:
    split = SplitSummary(1, 1, 5, 2, 0.5)
    for validation in (None, split):
        summary = Summary(3, 1, 1, 1, 0, ("a.jsonl",), split, validation)
        assert Summary.from_json(summary.to_json()) == summary


def test_a_folder_without_prepared_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a folder of prepared data"):
        SFTData.open(tmp_path)


def test_a_full_disk_is_explained(tmp_path: Path) -> None:
    with (
        pytest.raises(RunError, match="No space left on device") as caught,
        explain_errors(tmp_path),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.exit_code == 1


def test_a_summary_is_one_line_that_leaves_out_what_did_not_happen() -> None:
    train = SplitSummary(
        documents=90, sequences=30, tokens=3000, supervised_tokens=1000, efficiency=0.97
    )
    summary = Summary(
        rows=101,
        truncated=3,
        dropped_no_target=1,
        dropped_too_long=0,
        without_eos=0,
        files=("a.jsonl",),
        train=train,
        validation=None,
    )

    assert summary.describe() == (
        "data: 101 rows, 3 truncated, 1 dropped: nothing to learn; 90 to train on, 0 held out; "
        "30 sequences, 97 % full; 1,000 of 3,000 tokens learned"
    )
