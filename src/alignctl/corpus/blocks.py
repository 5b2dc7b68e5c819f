"""Raw text in blocks of whole documents, big enough to be sent to a worker process.

One process reads and decompresses; parsing, which costs far more, is the workers' part. Blocks
depend on the files alone, so whoever counts them can go on where an interrupted run stopped.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alignctl.data.rows.files import (
    BYTE_ORDER_MARK,
    SUFFIXES,
    check_line,
    explain_damage,
    find_files,
    holds_lines,
    parse_object,
    position,
    read_rows,
)
from alignctl.data.rows.streams import DamagedError, read_chunks
from alignctl.errors import UserError

TEXT_SUFFIXES = (".txt", ".txt.gz", ".txt.zst")

_BLOCK_BYTES = 1 << 20
# A text file that is one document has to fit into memory a few times.
_MAX_DOCUMENT_BYTES = 1 << 28

Kind = Literal["json", "line", "file"]
"""What a document is: a JSON object on a line, a line of text, or a whole file of text."""


@dataclass(frozen=True)
class Block:
    """Whole documents of one file.

    Attributes:
        file: The file.
        line: Number of the first line, or row.
        content: Whole lines; of kind `file`, all of it.
        kind: What a document is.
        consumed: Bytes of the file, as it lies on the disk, up to the end of the block.
    """

    file: Path
    line: int
    content: bytes
    kind: Kind
    consumed: int

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield the lines that are not blank, with their numbers, without a byte order mark."""
        for number, line in enumerate(self.content.split(b"\n"), self.line):
            text = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
            if text and not text.isspace():
                yield number, text

    def documents(self, key: str) -> Iterator["Raw"]:
        """Yield the documents; for a broken one, its error is in the place of its text."""
        if self.kind == "file":
            yield _attempt(self.content.removeprefix(BYTE_ORDER_MARK), self, 1, key)
            return
        for number, line in self.lines():
            yield _attempt(line, self, number, key)


@dataclass(frozen=True)
class Raw:
    """A document as it was found.

    Attributes:
        line: Its line, or row.
        content: The bytes of the line.
        text: Its text, or what is wrong with it.
    """

    line: int
    content: bytes
    text: str | UserError


def read_blocks(files: Sequence[Path], txt: Kind = "file") -> Iterator[Block]:
    """Stream files of JSON rows, or of text, in order.

    Args:
        files: `.jsonl` and its compressed forms, `.json`, `.parquet`, `.arrow`; `.txt` and its
            compressed forms.
        txt: What a document of a `.txt` file is.

    Raises:
        UserError: A file cannot be read, or ends early.
    """
    for file in files:
        if file.name.endswith(TEXT_SUFFIXES):
            yield from _whole_file(file) if txt == "file" else _line_blocks(file, "line")
        elif holds_lines(file):
            yield from _line_blocks(file, "json")
        else:
            yield from _row_blocks(file)


def find_texts(paths: Sequence[Path]) -> list[Path]:
    """Find the files of text, or of rows, that files and folders stand for, in order.

    In a folder, `train*` files are taken, or else all that are not held out.

    Raises:
        UserError: A path does not exist, or holds no such file.
    """
    files: list[Path] = []
    for path in paths:
        if path.name.endswith(TEXT_SUFFIXES) and path.is_file():
            files.append(path)
            continue
        texts = sorted(f for f in _entries(path) if f.name.endswith(TEXT_SUFFIXES))
        files += texts if texts and not _has_rows(path) else find_files(path, "train")
    return files


def _entries(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return [file for file in path.iterdir() if not file.name.startswith(".")]


def _has_rows(path: Path) -> bool:
    return any(file.name.endswith(SUFFIXES) for file in _entries(path))


def total_bytes(files: Sequence[Path]) -> int:
    """Add up the sizes of all files: the bytes that `Block.consumed` reaches in all."""
    return sum(file.stat().st_size for file in files)


def _attempt(content: bytes, block: Block, number: int, key: str) -> Raw:
    try:
        if block.kind != "json":
            return Raw(number, content, _decode(content, block.file, number))
        record = parse_object(content, block.file, number)
        return Raw(number, content, _text_at(record, block.file, number, key))
    except UserError as error:
        return Raw(number, content, error)


def _text_at(record: dict[str, object], file: Path, number: int, key: str) -> str:
    where = position(file, number)
    value = record.get(key)
    if key not in record:
        found = ", ".join(sorted(record)) or "none"
        raise UserError(
            f"{where}: no key {key!r} in this row (its keys: {found})", "name the text's: --key KEY"
        )
    if not isinstance(value, str):
        raise UserError(f"{where}: {key} is of type {type(value).__name__}, where text is expected")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: {key} holds half a surrogate pair (\\u{ord(value[error.start]):04x}) at "
            f"character {error.start + 1}",
            "the text was cut inside an escaped character; mend or remove the row",
        ) from error
    return value


def _decode(content: bytes, file: Path, number: int) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = number + content[: error.start].count(b"\n")
        raise UserError(
            f"{file}:{line}: not UTF-8 text (0x{content[error.start]:02x})",
            "convert the file: iconv -f LATIN1 -t UTF-8 OLD > NEW (if it is Latin-1)",
        ) from error


def _line_blocks(file: Path, kind: Kind) -> Iterator[Block]:
    pending = bytearray()
    line = searched = 1
    consumed = 0
    try:
        for chunk, consumed in read_chunks(file):
            pending += chunk
            # The first line end from there on: where a block ends depends on the text alone.
            while cut := pending.find(b"\n", max(searched, _BLOCK_BYTES)) + 1:
                block = Block(file, line, bytes(pending[:cut]), kind, consumed)
                yield block
                del pending[:cut]
                line += block.content.count(b"\n")
                searched = 0
            # Before _BLOCK_BYTES there may be many lines; after it there is none that ends.
            searched = len(pending)
            check_line(file, line, searched - _BLOCK_BYTES)
    except DamagedError as error:
        raise explain_damage(file, line + pending.count(b"\n"), error) from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error
    if pending:
        yield Block(file, line, bytes(pending), kind, consumed)


def _whole_file(file: Path) -> Iterator[Block]:
    content = bytearray()
    try:
        for chunk, _ in read_chunks(file):
            content += chunk
            if len(content) > _MAX_DOCUMENT_BYTES:
                raise UserError(
                    f"{file}: more than {_MAX_DOCUMENT_BYTES >> 20} MB in one document",
                    "a text file is one document; for one per line: --txt line",
                )
    except DamagedError as error:
        raise explain_damage(file, 1 + content.count(b"\n"), error) from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error
    if content.strip():
        yield Block(file, 1, bytes(content), "file", file.stat().st_size)


def _row_blocks(file: Path) -> Iterator[Block]:
    """Write the rows of a list or a table as lines: so workers parse all kinds of files alike."""
    lines: list[bytes] = []
    size = 0
    first = 1
    for row in read_rows([file]):
        lines.append(json.dumps(row.record, default=str).encode())
        size += len(lines[-1])
        if size >= _BLOCK_BYTES:
            yield Block(file, first, b"\n".join(lines), "json", 0)
            lines, size, first = [], 0, row.line + 1
    if lines:
        yield Block(file, first, b"\n".join(lines), "json", file.stat().st_size)
