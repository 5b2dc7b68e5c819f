r"""Files of answers that an interruption does not harm: hidden until complete, then whole.

    .answers.jsonl.KEY.partial    rows as they are done, each written at once
    answers.jsonl                 all of them
    answers.jsonl.info.json       how they came about, with the key

The key is a hash of all that decides what is answered. So the same command goes on where it was
interrupted, or finds that it is done already, and another one starts anew.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

from alignctl import atomic, user_files
from alignctl.errors import RunError, UserError
from alignctl.evaluation.generation import Answer

SUFFIXES = (".jsonl", ".txt")


def key_of(state: object) -> str:
    """Hash what decides the answers, given as JSON values."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def check_suffix(path: Path) -> None:
    """Refuse a file name that does not tell the format of the answers."""
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"--output {path}: the name must end in .jsonl (rows) or .txt (a line for each answer)"
        )
    if path.is_dir():
        raise UserError(f"--output {path}: this is a folder; name a file in it")


class AnswerFile:
    """The answers to a file of prompts, in its order; a context manager.

    Attributes:
        path: The complete file.
        state: "new", "resumed" with some rows done, or "finished".
        done: Rows that are there already.
    """

    def __init__(self, path: Path, key: str, *, lines_per_row: int = 1) -> None:
        """Store the names; nothing is opened yet.

        Args:
            path: The file to write.
            key: Of `key_of`.
            lines_per_row: Lines that a row of prompts becomes.
        """
        self.path = path
        self.state: Literal["new", "resumed", "finished"] = "new"
        self.done = 0
        self._key = key
        self._lines_per_row = lines_per_row
        self._info = path.with_name(f"{path.name}.info.json")
        self._partial = path.with_name(f".{path.name}.{key[:16]}.partial")
        self._stream: BinaryIO | None = None

    def __enter__(self) -> Self:
        """Find the rows that were written before, and open the file for more.

        Raises:
            UserError: Other answers have this name, another process writes it, or it cannot be
                written.
        """
        if self.path.exists():
            if self._told_key() != self._key:
                raise UserError(
                    f"{self.path} exists already, and is of another command, model or data",
                    "give another name, or remove it first",
                )
            self.state = "finished"
            return self
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._partial.open("a+b", buffering=0)
        except OSError as error:
            raise UserError(f"{self._partial}: cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._stream.close()
            raise UserError(
                f"{self.path} is being written by another process",
                "wait until it is done, or give another name",
            ) from error
        self.done = self._mend(self._stream)
        self.state = "resumed" if self.done else "new"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            self._stream.close()

    def write(self, lines: Sequence[str]) -> None:
        """Add the lines of the next row; they outlive the end of this process.

        Raises:
            RunError: The disk is full. What was written before is kept.
        """
        assert self._stream is not None
        assert len(lines) == self._lines_per_row
        content = b"".join(line.encode() + b"\n" for line in lines)
        try:
            while content:
                content = content[self._stream.write(content) :]
        except OSError as error:
            raise RunError(
                f"{self._partial}: cannot be written: {error.strerror}; {self.done:,} rows are "
                "kept",
                "free some space, and the same command goes on from there",
            ) from error
        self.done += 1

    def commit(self, info: Mapping[str, Any]) -> None:
        """Give the complete file its name, and write how it came about.

        Args:
            info: JSON values; nothing of what was asked or answered.
        """
        assert self._stream is not None
        os.fsync(self._stream.fileno())
        # The other way round, a crash between the two would leave answers that nobody knows.
        atomic.write_text(self._info, json.dumps({"key": self._key, **info}, indent=2) + "\n")
        self._partial.rename(self.path)
        atomic.fsync_folder(self.path.parent)
        self.state = "finished"

    def _told_key(self) -> object:
        try:
            return user_files.read_json(self._info).get("key")
        except UserError:
            return None

    def _mend(self, stream: BinaryIO) -> int:
        """Cut off a row that was half written; return the number of complete rows."""
        stream.seek(0)
        rows = lines = end = position = 0
        for line in stream:
            if not line.endswith(b"\n"):
                break
            position += len(line)
            lines += 1
            if lines == self._lines_per_row:
                rows, lines, end = rows + 1, 0, position
        stream.truncate(end)
        stream.seek(0, os.SEEK_END)
        return rows


def format_text(answers: Sequence[Answer]) -> list[str]:
    r"""Write a line for each answer; its line breaks are `\n`, and a backslash is doubled."""
    return [
        each.text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
        for each in answers
    ]


def format_row(record: Mapping[str, object], answers: Sequence[Answer], *, is_cut: bool) -> str:
    """Write a row of prompts with its answers, as JSON; several answers are a list.

    An answer that the row had before is kept as `given_response`.
    """
    row = {("given_response" if key == "response" else key): v for key, v in record.items()}
    texts, ends = [each.text for each in answers], [each.finish for each in answers]
    lengths = [len(each.tokens) for each in answers]
    is_one = len(answers) == 1
    row["response"] = texts[0] if is_one else texts
    row["finish"] = ends[0] if is_one else ends
    row["num_tokens"] = lengths[0] if is_one else lengths
    if is_cut:
        row["prompt_cut"] = True
    # Values of parquet files may be dates; half of a surrogate pair is none that UTF-8 could hold.
    text = json.dumps(row, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(row, default=str)
    return text
