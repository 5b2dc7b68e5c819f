"""Every reply of a model or a judge on the disk before it counts, so that none is asked for twice.

Files of JSON lines, only ever appended to. A line is named by a hash of all that decides a reply;
it holds the reply and never what was asked.
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from alignctl import atomic, user_files
from alignctl.errors import RunError, UserError

_FORMAT = 1
"""Part of every key; raised when the same request would mean something else."""


class Reply(BaseModel):
    """What a judge has said, or a model."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    text: str
    """The words."""
    finish_reason: str | None
    """Why it ended; `length` when it was cut."""
    prompt_tokens: int | None
    """Tokens read; None when a server does not say."""
    completion_tokens: int | None
    """Tokens written, likewise."""
    time: float
    """When it came, seconds since 1970."""


class _Line(BaseModel):
    """A line of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    key: str
    reply: Reply


def key(*content: object) -> str:
    """Name a reply: hash all that decides it, given as JSON values."""
    return hashlib.sha256(json.dumps([_FORMAT, *content], sort_keys=True).encode()).hexdigest()


def readable(name: str) -> str:
    """Write a model's name as part of a file's name; a slash becomes two dashes, as in FastChat."""
    return re.sub(r"[^\w.-]+", "--", name).strip("-.")[:80] or "model"


def file_name(name: str, *content: object) -> str:
    """Name a file of replies after a model and a hash of all that tells it from others."""
    return f"{readable(name)}-{key(name, *content)[:8]}.jsonl"


class ReplyCache:
    """The replies in one file, held by one process; see `open_cache`."""

    def __init__(self, file: Path, descriptor: int, *, can_write: bool = True) -> None:
        self._file = file
        self._descriptor = descriptor
        self._size = 0
        self._replies: dict[str, Reply] = {}
        self._read(can_write)

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: str) -> Reply | None:
        """Return the reply of that name, if it was ever given."""
        return self._replies.get(key)

    def add(self, key: str, reply: Reply) -> None:
        """Keep a reply; when this returns, it is on the disk.

        Raises:
            RunError: The disk is full or broken; the file is as it was before.
        """
        line = _Line(key=key, reply=reply).model_dump_json().encode() + b"\n"
        try:
            self._append(line)
        except OSError as error:
            os.ftruncate(self._descriptor, self._size)
            raise RunError(
                f"{self._file}: a reply cannot be kept: {error.strerror or error}",
                "free some space; the same command goes on where this one stopped",
            ) from error
        self._replies[key] = reply

    def _append(self, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        os.fsync(self._descriptor)
        self._size += len(line)

    def _read(self, can_write: bool) -> None:
        """Read all lines, and mend the last one if a killed process left half of it."""
        rest = b""
        with open(self._descriptor, "rb", closefd=False) as stream:
            for number, line in enumerate(user_files.read_lines(self._file, stream), 1):
                if not line.endswith(b"\n"):
                    rest = line
                    break
                found = _parse(line)
                if found is None:
                    raise UserError(
                        f"{self._file}:{number}: not a reply; the file was changed",
                        f"remove that line: sed -i {number}d {self._file}",
                    )
                self._replies[found.key] = found.reply
                self._size += len(line)
        if not rest or not can_write:
            return
        os.ftruncate(self._descriptor, self._size)
        if (found := _parse(rest)) is not None:  # all of it but the line's end
            self.add(found.key, found.reply)


@contextmanager
def open_cache(file: Path) -> Iterator[ReplyCache]:
    """Open a cache for as long as the block lasts; it is made if it is not there.

    Raises:
        UserError: Another process holds it, it cannot be written, or a line of it is damaged.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # A pipe is refused, not waited for.
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK
        descriptor = os.open(file, flags, 0o600)
    except OSError as error:
        raise UserError(
            f"{file}: replies cannot be kept there: {error.strerror or error}",
            "choose another folder with --output",
        ) from error
    try:
        user_files.check_regular(file, os.fstat(descriptor).st_mode)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{file}: another evaluation is writing to it",
                "wait until it ends: the replies that it gets are then known here, too",
            ) from None
        atomic.fsync_folder(file.parent)
        yield ReplyCache(file, descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def peek(file: Path) -> Iterator[ReplyCache]:
    """Open a cache for reading, while others may write to it; nothing is made, mended or locked.

    Raises:
        UserError: A line of it is damaged.
    """
    with user_files.opened(file) if file.exists() else Path(os.devnull).open("rb") as stream:
        yield ReplyCache(file, stream.fileno(), can_write=False)


def _parse(line: bytes) -> _Line | None:
    """Read a line's content; None when it is no such line."""
    try:
        return _Line.model_validate_json(line)
    except ValidationError:
        return None
