"""Files of JSON lines, compressed or not, that say what was written into them."""

import gzip
import hashlib
import json
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Literal, Self, cast

from alignctl.corpus.manifest import FileRecord

Compression = Literal["none", "gz", "zst"]

SUFFIX: dict[Compression, str] = {
    "none": ".jsonl",
    "gz": ".jsonl.gz",
    "zst": ".jsonl.zst",
}
_LEVEL = {"gz": 6, "zst": 3}


class _Hashed:
    """A raw file that counts and hashes the bytes which reach it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.size = 0
        self.digest = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self._stream.write(content)
        self.size += len(content)
        self.digest.update(content)
        return len(content)

    def flush(self) -> None:
        self._stream.flush()


class LineWriter:
    """Writes lines to a file whose name says how it is compressed; a context manager.

    Equal lines give equal bytes: no time and no name gets into a compressed file.

    Attributes:
        lines: Lines written so far.
        text_bytes: Their bytes before compression.
    """

    def __init__(self, file: Path) -> None:
        """Remember the name; `__enter__` opens the file."""
        self._file = file
        self._stack = ExitStack()
        self.lines = 0
        self.text_bytes = 0

    def __enter__(self) -> Self:
        self._raw = _Hashed(self._stack.enter_context(self._file.open("wb")))
        self._sink: Any = self._raw
        if self._file.suffix == ".gz":
            packed = gzip.GzipFile("", "wb", _LEVEL["gz"], self._raw, mtime=0)
            self._sink = self._stack.enter_context(packed)
        elif self._file.suffix == ".zst":
            import zstandard

            packer = zstandard.ZstdCompressor(_LEVEL["zst"])
            writer = packer.stream_writer(cast("IO[bytes]", self._raw), closefd=False)
            self._sink = self._stack.enter_context(writer)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def write_line(self, line: bytes) -> None:
        """Add a line, which has no line break of its own."""
        self._sink.write(line + b"\n")
        self.lines += 1
        self.text_bytes += len(line) + 1

    def write_row(self, row: object) -> None:
        """Add a row as JSON; bytes of file names that are no characters are escaped."""
        text = json.dumps(row, ensure_ascii=False)
        self.write_line(text.encode("utf-8", "backslashreplace"))

    def record(self) -> FileRecord:
        """Return name, size and checksum of the file, once it is closed."""
        return FileRecord(
            name=self._file.name, bytes=self._raw.size, sha256=self._raw.digest.hexdigest()
        )
