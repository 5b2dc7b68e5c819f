"""Who is held out. The folder, its name and its failures: test_sft.py and test_preferences.py."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignctl.data.preparation import Sources, _hash_and_count, choose_held_out, divide
from alignctl.errors import UserError


def test_the_smallest_hashes_are_held_out_equal_ones_together() -> None:
    """Two fifths of five are two; the second smallest hash is there twice."""
    hashes = np.asarray([7, 2, 9, 1, 2], np.uint64)
    assert choose_held_out(hashes, 0.4).tolist() == [False, True, False, True, True]


@given(st.lists(st.integers(0, 2**64 - 1), min_size=2, unique=True), st.floats(0.001, 0.999))
def test_of_different_texts_the_wanted_share_is_held_out(hashes: list[int], share: float) -> None:
    wanted = max(1, round(share * len(hashes)))
    if wanted == len(hashes):
        with pytest.raises(UserError, match="leaves nothing to train on"):
            choose_held_out(np.asarray(hashes, np.uint64), share)
    else:
        assert choose_held_out(np.asarray(hashes, np.uint64), share).sum() == wanted


def test_a_file_without_a_line_is_not_read_to_its_end(tmp_path: Path) -> None:
    """A terabyte of zeros, which is made in a moment, would be read for hours."""
    file = tmp_path / "rows.jsonl"
    with file.open("wb") as stream:
        stream.write(b"{}\n")
        stream.truncate(1 << 40)
    with pytest.raises(UserError, match=r"rows.jsonl:2: longer than 64 MiB"):
        _hash_and_count(file)


def test_entries_are_divided_source_by_source() -> None:
    """The smallest hash is held out, wherever it is; of files of their own all are."""
    files = {Path(name): [Path(name)] for name in "ab"}
    hashes = np.asarray([5, 1, 7, 6, 9], np.uint64)
    parts, held_out = divide(Sources(files, {}), [3, 2], hashes, 0.2)
    assert ([part.tolist() for part in parts], held_out.tolist()) == ([[0, 2], [3, 4]], [1])
    parts, held_out = divide(Sources(files, {Path("c"): []}), [2, 1, 2], hashes, 0.2)
    assert ([part.tolist() for part in parts], held_out.tolist()) == ([[0, 1], [2]], [3, 4])


def test_a_source_that_is_held_out_as_a_whole_is_named() -> None:
    files = {Path(name): [Path(name)] for name in "ab"}
    hashes = np.asarray([5, 8, 7, 1], np.uint64)
    words = "data.validation_fraction=0.25 holds out all that b has, which is 1"
    with pytest.raises(UserError, match=f"data.blend: {words}"):
        divide(Sources(files, {}), [3, 1], hashes, 0.25)
