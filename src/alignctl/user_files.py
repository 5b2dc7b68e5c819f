"""Reading of files that a user gives: only regular ones, and one message for whatever is wrong.

A pipe may never end, `/dev/zero` never does, and a sparse file of a terabyte is made in a moment.
So a file is opened by `opened`, and read whole by `read_bytes`, `read_text` or `read_json`, which
have a limit; and what is made of its content is made inside of `reading`.
"""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from alignctl.errors import AlignctlError, UserError

MOST_BYTES = 1 << 28
"""Of a file that is read whole. The largest that are known, indexes and tokenizers, have a tenth of
it."""

MOST_LINE_BYTES = 1 << 26
"""Of a row, or a line of text. The longest context of any model is a tenth of it."""

_LARGEST_HOLE = 1 << 30

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


@contextmanager
def reading(where: object, hint: str | None = None) -> Iterator[None]:
    """Turn whatever is raised while a user's file is read or checked into one message.

    Args:
        where: The file, with its line or key where they are known.
        hint: What to do about it.

    Raises:
        UserError: For anything but what is explained already, and libraries that are missing.
    """
    try:
        yield
    except (AlignctlError, ImportError):
        raise
    except Exception as error:
        raise UserError(f"{where}: {_in_words(error)}", hint) from error


def opened(path: Path) -> BufferedReader:
    """Open a regular file to read it.

    Raises:
        UserError: It is something else, such as a pipe or a device.
        OSError: It cannot be opened.
    """
    # Without O_NONBLOCK, a pipe is opened only when somebody writes into it.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    try:
        check_regular(path, os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def refuse_hole(path: Path, stream: BufferedReader) -> None:
    """Refuse an open file with a hole of more than a gibibyte: reading its zeros takes hours.

    For text and rows, which have no such zeros; where a file system knows of no holes, there are
    none.
    """
    place, size = 0, os.fstat(stream.fileno()).st_size
    while size - place > _LARGEST_HOLE:
        hole = os.lseek(stream.fileno(), place, os.SEEK_HOLE)
        try:
            place = os.lseek(stream.fileno(), hole, os.SEEK_DATA) if hole < size else size
        except OSError:  # there is no data behind the hole
            place = size
        if place - hole > _LARGEST_HOLE:
            raise UserError(
                f"{path}: from byte {hole:,} to byte {place:,} nothing was ever written into it",
                "copy or download it again",
            )
    os.lseek(stream.fileno(), 0, os.SEEK_SET)


def is_there(path: Path) -> bool:
    """Tell whether a name exists; true also for a link to what is gone, which cannot be read."""
    return os.path.lexists(path)


def check_regular(path: Path, mode: int) -> None:
    """Refuse what is no regular file, by the mode that `stat` tells of it."""
    if not stat.S_ISREG(mode):
        found = _KINDS.get(stat.S_IFMT(mode), "something else")
        hint = "name a file in it" if stat.S_ISDIR(mode) else "write its content to a file first"
        raise UserError(f"{path}: {found}, where a file is expected", hint)


def read_bytes(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """Read a regular file whole.

    Raises:
        UserError: It is no regular file, or a larger one.
        OSError: It cannot be read.
    """
    with opened(path) as stream:
        content = stream.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise UserError(f"{path}: larger than the {most_bytes:,} bytes that such a file may have")
    return content


def read_lines(path: Path, stream: BufferedReader) -> Iterator[bytes]:
    """Read an open file line by line; lines keep their line breaks, the last one may have none.

    Raises:
        UserError: A line is longer than `MOST_LINE_BYTES`.
    """
    number = 0
    while line := stream.readline(MOST_LINE_BYTES + 1):
        number += 1
        if len(line) > MOST_LINE_BYTES:
            raise UserError(f"{path}:{number}: longer than {MOST_LINE_BYTES >> 20} MiB")
        yield line


def read_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """Read a regular file whole, as UTF-8.

    Raises:
        UserError: It cannot be read, is no regular file, too large, or no text.
    """
    with reading(path):
        return read_bytes(path, most_bytes).decode("utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a regular file that is one JSON object.

    Raises:
        UserError: It cannot be read, or is something else.
    """
    text = read_text(path)
    with reading(path, "every brace, bracket and quote must be closed"):
        content = json.loads(text)
    if not isinstance(content, dict):
        raise UserError(f"{path}: a JSON object is expected, found {type(content).__name__}")
    return content


def _in_words(error: Exception) -> str:
    """Explain an exception on one line; reword those that would say nothing to a user."""
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})"
    if isinstance(error, UnicodeDecodeError):
        line = error.object[: error.start].count(b"\n") + 1
        return f"not UTF-8 text: byte 0x{error.object[error.start]:02x} on line {line}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, MemoryError):
        return "takes more memory than there is"
    if "int_max_str_digits" in str(error):  # Python's limit, which it explains to programmers
        return "a number in it has more than 4,300 digits"
    text = " ".join(str(error).split())[:200]
    if isinstance(error, KeyError):
        return f"{text} is missing in it, or is not known"
    return f"cannot be read: {text or type(error).__name__}"
