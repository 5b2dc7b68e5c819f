"""Blocks of two pages here, so that a few kilobytes are several of them."""

import errno
import fcntl
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignctl.checkpoints import manifest
from alignctl.checkpoints.manifest import Recorder
from alignctl.checkpoints.tensors import direct_file
from alignctl.checkpoints.tensors.direct_file import DirectFile

BLOCK = 2 * 4096
CONTENT = bytes(range(251)) * 200
"""Six blocks and a bit."""

Write = Callable[[int, memoryview], int]
_WRITE = os.write


def is_direct(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


def as_it_is(descriptor: int, content: memoryview) -> int:
    return _WRITE(descriptor, content)


def refused(descriptor: int, content: memoryview) -> int:
    """A file system that takes the flag but no write, or one that wants larger units."""
    if is_direct(descriptor):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return _WRITE(descriptor, content)


def short(descriptor: int, content: memoryview) -> int:
    """A part of a page at most, after which nothing goes past the cache any more."""
    return (
        _WRITE(descriptor, content) if is_direct(descriptor) else _WRITE(descriptor, content[:99])
    )


def short_of_pages(descriptor: int, content: memoryview) -> int:
    return _WRITE(descriptor, content[:4096])


def aligned(descriptor: int, content: memoryview) -> int:
    """What every file system wants, whatever the one of this test lets through."""
    if is_direct(descriptor):
        assert len(content) % 4096 == 0
        assert os.lseek(descriptor, 0, os.SEEK_CUR) % 4096 == 0
    return _WRITE(descriptor, content)


def into_full_disk(descriptor: int, content: memoryview) -> int:
    """Room for two blocks and a half."""
    room = 5 * 4096 - os.fstat(descriptor).st_size
    if room <= 0:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return _WRITE(descriptor, content[:room])


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_file, "BLOCK_BYTES", BLOCK)


def check_bytes(folder: Path, pieces: list[bytes]) -> None:
    """Writes pieces; the file and its record are those of a plain one."""
    (folder / "plain").write_bytes(b"".join(pieces))
    with Recorder() as recorder:
        with recorder.open(folder / "file") as stream:
            for number, piece in enumerate(pieces):
                assert stream.tell() == sum(map(len, pieces[:number]))
                stream.write(piece)
        found = recorder.records(folder)
    assert (folder / "file").read_bytes() == (folder / "plain").read_bytes()
    assert found == {"file": manifest.record(folder / "plain")}


sizes = st.lists(
    st.integers(0, 3 * BLOCK) | st.sampled_from([1, 4095, 4096, BLOCK - 1, BLOCK, BLOCK + 1]),
    max_size=8,
)


@pytest.mark.parametrize("write", [as_it_is, aligned, refused, short, short_of_pages])
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(sizes=sizes)
def test_any_pieces_give_the_bytes_and_the_checksum_of_a_plain_file(
    write: Write, sizes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "write", write)
    with TemporaryDirectory(dir=tmp_path) as folder:
        check_bytes(Path(folder), [os.urandom(size) for size in sizes])


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="Linux has this file system in memory")
def test_a_file_system_in_memory_takes_it_too() -> None:
    with TemporaryDirectory(dir="/dev/shm") as folder:
        check_bytes(Path(folder), [CONTENT, CONTENT])


def test_a_system_or_file_system_without_the_flag_gets_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "none").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(direct_file, "_O_DIRECT", 0)
        check_bytes(tmp_path / "none", [CONTENT])

    def without(file: io.FileIO, command: int, flags: int = 0) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(file, command, flags)

    real = fcntl.fcntl
    monkeypatch.setattr(fcntl, "fcntl", without)
    check_bytes(tmp_path, [CONTENT])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux writes past its cache so")
def test_whole_blocks_go_past_the_cache_and_short_files_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, bool]] = []

    def watch(descriptor: int, content: memoryview) -> int:
        seen.append((len(content), is_direct(descriptor)))
        return _WRITE(descriptor, content)

    monkeypatch.setattr(os, "write", watch)
    check_bytes(tmp_path, [CONTENT[: 2 * BLOCK + 5]])
    assert seen == [(BLOCK, True), (BLOCK, True), (5, False)]
    seen.clear()
    check_bytes(tmp_path, [CONTENT[: BLOCK - 1]])
    assert seen == [(BLOCK - 1, False)]


@pytest.mark.parametrize("size", [3 * BLOCK - 1, 4 * BLOCK, 6 * BLOCK + 1])
def test_a_full_disk_is_said_by_write_or_close_and_from_then_on(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "write", into_full_disk)
    with Recorder() as recorder:
        with (
            pytest.raises(OSError, match="No space left") as error,
            recorder.open(tmp_path / "file") as stream,
        ):
            stream.write(CONTENT[:size])
        assert error.value.errno == errno.ENOSPC
        assert recorder.records(tmp_path) == {}


def test_nothing_is_written_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hole would be left in the file, which looks complete."""

    refusals = iter([OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))])

    def once(descriptor: int, content: memoryview) -> int:
        for refusal in refusals:
            raise refusal
        return _WRITE(descriptor, content)

    monkeypatch.setattr(os, "write", once)
    raw = io.FileIO(tmp_path / "file", "wb")
    file = DirectFile(raw)
    assert file.write(CONTENT[:BLOCK]) == BLOCK
    with pytest.raises(OSError, match="quota"):  # noqa: PT012
        for _ in range(8):  # one more than can wait for the disk
            file.write(CONTENT[:BLOCK])
    with pytest.raises(OSError, match="quota"):
        file.write(CONTENT[:1])
    with pytest.raises(OSError, match="quota"):
        file.close()
    assert file.closed
    assert raw.closed
    file.close()
    assert (tmp_path / "file").stat().st_size == 0
