import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignctl.checkpoints.tensors import mapped_file
from alignctl.checkpoints.tensors.mapped_file import read_bytes, windows
from alignctl.errors import UserError

CONTENT = np.random.default_rng(0).bytes(20_000)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mapped") / "file"
    path.write_bytes(CONTENT)
    return path


@given(offset=st.integers(0, len(CONTENT)), size=st.integers(0, len(CONTENT)))
def test_any_part_is_what_is_in_the_file(offset: int, size: int, file: Path) -> None:
    """Pages begin at multiples of 4096, parts anywhere."""
    if offset + size > len(CONTENT):
        with pytest.raises(UserError) as error:
            read_bytes(file, offset, size)
        missing = offset + size - len(CONTENT)
        assert error.value.message == f"{file}: ends {missing} bytes too early"
        return
    assert read_bytes(file, offset, size).tobytes() == CONTENT[offset : offset + size]


def test_what_is_written_to_a_part_does_not_reach_the_file(file: Path) -> None:
    part = read_bytes(file, 5000, 5000)
    part[:] = 0
    assert not part.any()
    assert file.read_bytes() == CONTENT


def test_a_part_outlives_the_name_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(CONTENT)
    part = read_bytes(file, 100, 10_000)
    file.unlink()
    assert part.tobytes() == CONTENT[100:10_100]


def test_windows_are_the_whole_file_in_order(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_file, "_WINDOW_BYTES", 4096)
    parts = [*windows(file)]
    assert [part.size for part in parts] == [4096, 4096, 4096, 4096, 3616]
    assert b"".join(part.tobytes() for part in parts) == CONTENT


def test_an_empty_file_has_no_windows(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert [*windows(tmp_path / "empty")] == []


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing: cannot be read: No such file"):
        [*windows(tmp_path / "missing")]
    with pytest.raises(UserError, match="a folder, where a file is expected"):
        read_bytes(tmp_path, 0, 10)


@pytest.fixture
def shrinking(tmp_path: Path) -> Path:
    """Two pages, of which another program is about to cut off the second."""
    path = tmp_path / "shrinking"
    path.write_bytes(CONTENT[:8192])
    return path


def test_what_the_disk_cannot_read_is_an_error_at_once(
    shrinking: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = mmap.mmap

    def then_cut(*args: Any, **kwargs: Any) -> mmap.mmap:
        mapped = real(*args, **kwargs)
        os.truncate(shrinking, 4096)
        return mapped

    monkeypatch.setattr(mmap, "mmap", then_cut)
    with pytest.raises(UserError, match="shrinking: cannot be read: Bad address"):
        read_bytes(shrinking, 0, 8192)


def test_a_file_that_was_longer_when_it_was_opened_is_named(
    shrinking: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look is at what kind of file it is, the second at its size."""
    real, looks = os.fstat, [0]

    def then_cut(descriptor: int) -> os.stat_result:
        found = real(descriptor)
        looks[0] += 1
        if looks[0] == 2:
            os.truncate(shrinking, 4096)
        return found

    monkeypatch.setattr(os, "fstat", then_cut)
    with pytest.raises(UserError, match="shrinking: another program cuts it short"):
        read_bytes(shrinking, 0, 8192)
