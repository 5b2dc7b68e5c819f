"""Rows out of data files: which files a path means, and their objects one by one with positions."""

import difflib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal

from alignctl.data.rows.folders import HELD_OUT, files_by_split, refuse_several
from alignctl.data.rows.json_list import list_values
from alignctl.data.rows.streams import DamagedError, read_chunks
from alignctl.errors import UserError
from alignctl.user_files import MOST_LINE_BYTES, check_regular, opened, reading

TABLES = (".parquet", ".arrow")
"""Files of columns: Parquet, and what `datasets` keeps on disk, Arrow's IPC format."""

SUFFIXES = (".jsonl", ".jsonl.zst", ".jsonl.gz", ".json", *TABLES)
"""The kinds of file that are read; `.json` is a list of objects (or, mislabelled, JSON lines)."""

Role = Literal["train", "validation"]

_TABLE_ROWS = 1024
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Row:
    """One object of a data file.

    Attributes:
        file: The file.
        line: Line number, or number of the row in a list or a table; from 1.
        record: The object as it stands there.
    """

    file: Path
    line: int
    record: dict[str, object]

    @property
    def where(self) -> str:
        """Position in words, for messages."""
        return position(self.file, self.line)

    def __str__(self) -> str:
        return self.where


def position(file: Path, number: int) -> str:
    """Write `file:line` for files of lines, which editors can open; `file: row N` for others."""
    return f"{file}:{number}" if ".jsonl" in file.name else f"{file}: row {number}"


def find_files(path: Path, role: Role) -> list[Path]:
    """Find the data files that a file or folder stands for.

    A file stands for itself. In a folder, files named train are the training files and, of those
    named validation, valid, val, dev, eval and test, the first kind present is held out. A folder
    without a file named train trains on everything that is not held out.

    Returns:
        Sorted files; empty only when a folder holds none for `validation`.
    """
    try:
        return _find_files(path, role)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def _find_files(path: Path, role: Role) -> list[Path]:
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise UserError(f"{path}: not a kind of data file that is read", _tell_accepted())
        return [path]
    if path.exists() and not path.is_dir():
        check_regular(path, path.stat().st_mode)
    if not path.is_dir():
        near = difflib.get_close_matches(path.name, _names(path.parent), n=1)
        raise UserError(
            f"{path}: no such file or folder",
            f"did you mean {path.parent / near[0]}?"
            if near
            else "check --data (data.train) or data.blend",
        )
    splits = files_by_split(path, SUFFIXES)
    if role == "validation":
        return next((splits[kind] for kind in HELD_OUT if kind in splits), [])
    found = splits.get("train") or splits.get("")
    if not found:
        held_out = [file.name for files in splits.values() for file in files]
        raise UserError(
            f"{path}: no training file in this folder",
            f"by its name {held_out[0]} is held out: call one of the files train, or give the file"
            if held_out
            else _tell_accepted(),
        )
    refuse_several(path, found)
    return found


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))


def _tell_accepted() -> str:
    return "rows are read from files that end in " + ", ".join(SUFFIXES)


def read_rows(files: Iterable[Path]) -> Iterator[Row]:
    """Stream the objects of files, in order; blank lines and a byte order mark are skipped."""
    for file in files:
        if holds_lines(file):
            yield from _line_rows(file)
        elif file.name.endswith(TABLES):
            yield from _table_rows(file)
        else:
            yield from _list_rows(file)


def holds_lines(file: Path) -> bool:
    """Tell whether a file has an object on each line, whatever its name says."""
    if file.name.endswith(TABLES):
        return False
    return not file.name.endswith(".json") or _first_byte(file) != b"["


def _line_rows(file: Path) -> Iterator[Row]:
    number = 0
    try:
        for number, line in enumerate(_lines(file), 1):
            text = line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
            if not text.isspace() and text:
                yield Row(file, number, parse_object(text, file, number))
    except DamagedError as error:
        raise explain_damage(file, number + 1, error) from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error


def explain_damage(file: Path, line: int, error: DamagedError) -> UserError:
    """Make the error for a compressed file that ends early, at or after a line."""
    return UserError(
        f"{file}:{line}: the compressed file is damaged or cut short ({error})",
        "copy or download it again, or compress it anew",
    )


def parse_object(line: bytes, file: Path, number: int) -> dict[str, object]:
    """Parse the JSON object on a line.

    Args:
        line: The line, without a byte order mark.
        file: The file, for messages.
        number: The line's number, for messages.

    Raises:
        UserError: It is not UTF-8, not JSON, or no object.
    """
    where = position(file, number)
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: byte {error.start + 1} of the line is not UTF-8 (0x{line[error.start]:02x})",
            "convert the file: iconv -f LATIN1 -t UTF-8 OLD > NEW (if it is Latin-1)",
        ) from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: not valid JSON: {error.msg} at column {error.colno}",
            "every line must be one complete JSON object",
        ) from error
    except (RecursionError, ValueError) as error:
        with reading(where):
            raise error
    return _check_object(value, where)


def _check_object(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        kind = {list: "list", str: "string", type(None): "null"}.get(type(value), "number")
        raise UserError(f"{where}: a JSON {kind}, where an object like {{...}} is expected")
    return value


def _lines(file: Path) -> Iterator[bytes]:
    tail: list[bytes] = []
    number, size = 1, 0
    for chunk, _ in read_chunks(file):
        first, *lines = chunk.split(b"\n")
        tail.append(first)
        size += len(first)
        check_line(file, number, size)
        if lines:
            yield b"".join(tail)
            tail, size = [lines.pop()], 0
            yield from lines
            number += 1 + len(lines)
            size = len(tail[0])
    if size:
        yield b"".join(tail)


def check_line(file: Path, number: int, num_bytes: int) -> None:
    """Refuse a line, or row, that would fill the memory of the machine."""
    if num_bytes > MOST_LINE_BYTES:
        raise UserError(
            f"{position(file, number)}: longer than {MOST_LINE_BYTES >> 20} MiB",
            "a row is a JSON object on a line of its own; cut longer texts into several rows",
        )


def _first_byte(file: Path) -> bytes:
    try:
        with opened(file) as stream:
            return stream.read(4096).removeprefix(BYTE_ORDER_MARK).lstrip()[:1]
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error


def _list_rows(file: Path) -> Iterator[Row]:
    for number, value in enumerate(list_values(file), 1):
        yield Row(file, number, _check_object(value, position(file, number)))


def _table_rows(file: Path) -> Iterator[Row]:
    import pyarrow

    number = 0
    batches = _parquet_batches if file.name.endswith(".parquet") else _arrow_batches
    with reading(file), opened(file) as stream:
        try:
            for batch in batches(stream):
                for record in batch.to_pylist():
                    number += 1
                    yield Row(file, number, record)
        except (pyarrow.ArrowException, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            kind = file.suffix.removeprefix(".")
            raise UserError(f"{file}: not a readable {kind} file: {reason}") from error


def _parquet_batches(stream: BufferedReader) -> Iterator[Any]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(stream) as table:
        yield from table.iter_batches(batch_size=_TABLE_ROWS)


def _arrow_batches(stream: BufferedReader) -> Iterator[Any]:
    """Read Arrow's IPC format: a stream, as `datasets` writes it, or a file with an index."""
    import pyarrow.ipc

    if stream.peek(6)[:6] == b"ARROW1":
        with pyarrow.ipc.open_file(stream) as table:
            batches = (table.get_batch(place) for place in range(table.num_record_batches))
            for batch in batches:
                yield from _cut(batch)
    else:
        with pyarrow.ipc.open_stream(stream) as table:
            for batch in table:
                yield from _cut(batch)


def _cut(batch: Any) -> Iterator[Any]:
    for start in range(0, batch.num_rows, _TABLE_ROWS):
        yield batch.slice(start, _TABLE_ROWS)
