"""The values of a file that is one JSON list, one by one: it may be larger than memory."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NoReturn

from alignctl.errors import UserError
from alignctl.user_files import opened, reading

_CHUNK_BYTES = 1 << 20
_MOST_VALUE_CHARACTERS = 1 << 26
_WHITE_SPACE = re.compile(r"[ \t\n\r]*")


def list_values(file: Path) -> Iterator[object]:
    """Stream the values of a JSON list.

    Raises:
        UserError: It is not UTF-8, or not JSON; the message has line and column.
    """
    try:
        with opened(file) as stream:
            window = _Window(file, stream)
            window.take("[")
            if window.peek() == "]":
                window.take("]")
            else:
                yield window.value()
                while window.take(",]") == ",":
                    yield window.value()
            if window.peek():
                window.fail("Extra data")
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error


class _Window:
    """The part of a file's text that is looked at, and where in the file it is."""

    def __init__(self, file: Path, stream: BinaryIO) -> None:
        self._file = file
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._text = ""
        self._place = 0
        self._line = 1
        self._column = 0  # characters of the line that stood before the text
        self._is_whole = False

    def peek(self) -> str:
        """Return the next character that is not white space, without passing it; "" at the end."""
        while True:
            blank = _WHITE_SPACE.match(self._text, self._place)
            assert blank is not None  # it may be empty
            self._place = blank.end()
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._read_on():
                return ""

    def take(self, allowed: str) -> str:
        """Pass over the next character and return it, if it is one of `allowed`; fail otherwise."""
        found = self.peek()
        if not found or found not in allowed:
            self.fail(f"Expecting {' or '.join(repr(each) for each in allowed)}")
        self._place += 1
        return found

    def value(self) -> object:
        """Pass over the next value and return it."""
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                # Perhaps only the rest of it is missing.
                if self._read_on():
                    continue
                self._place = error.pos
                self.fail(error.msg)
            except (RecursionError, ValueError) as error:
                line = self._line + self._text.count("\n", 0, self._place)
                with reading(f"{self._file}:{line}"):
                    raise error
            # A number that ends with the text may go on.
            if end == len(self._text) and self._read_on():
                continue
            self._place = end
            return value

    def fail(self, message: str) -> NoReturn:
        """Raise the error that says where the file is not JSON."""
        before = self._text[: self._place]
        line = self._line + before.count("\n")
        start = 0 if "\n" in before else self._column
        column = start + len(before) - before.rfind("\n")
        raise UserError(f"{self._file}:{line}: not valid JSON: {message} at column {column}")

    def _read_on(self) -> bool:
        """Read more text, at least as much again: so a long value is parsed only a few times."""
        if self._is_whole:
            return False
        self._forget()
        if len(self._text) > _MOST_VALUE_CHARACTERS:
            raise UserError(
                f"{self._file}:{self._line}: a value that is longer than "
                f"{_MOST_VALUE_CHARACTERS >> 20} MiB",
                "cut longer texts into several rows",
            )
        data = self._stream.read(max(_CHUNK_BYTES, len(self._text)))
        self._is_whole = not data
        try:
            self._text += self._decoder.decode(data, final=self._is_whole)
        except UnicodeDecodeError as error:
            bad = self._line + self._text.count("\n") + error.object[: error.start].count(b"\n")
            raise UserError(f"{self._file}:{bad}: not UTF-8 text") from error
        return True

    def _forget(self) -> None:
        """Drop the text that was passed over."""
        before = self._text[: self._place]
        self._line += before.count("\n")
        start = 0 if "\n" in before else self._column
        self._column = start + len(before) - 1 - before.rfind("\n")
        self._text = self._text[self._place :]
        self._place = 0
