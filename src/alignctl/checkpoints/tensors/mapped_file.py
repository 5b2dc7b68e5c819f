"""Parts of files, mapped into memory one at a time.

What is in the system's cache is not copied, which took a fourth of a conversion's processor time.
A part counts as memory of this process, like one that was read, until its array is dropped.
"""

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignctl.errors import UserError
from alignctl.user_files import opened

_WINDOW_BYTES = 8 << 20
"""Of a file that is looked at from its beginning to its end."""

_MADV_POPULATE_READ = 22
"""Of Linux since 5.14: what the disk cannot read is an error at once, and not a signal later."""

_LIBRARY = ctypes.CDLL(None, use_errno=True)
"""Whose `madvise` lets other threads run meanwhile; that of Python's `mmap` does not."""


def read_bytes(file: Path, offset: int, num_bytes: int) -> NDArray[np.uint8]:
    """Map a part of a file. What is written to the array does not reach the file.

    Raises:
        UserError: The file cannot be read, or ends before the part does.
    """
    before = offset % mmap.ALLOCATIONGRANULARITY
    try:
        with opened(file) as stream:
            missing = offset + num_bytes - os.fstat(stream.fileno()).st_size
            if missing > 0:
                raise UserError(
                    f"{file}: ends {missing} bytes too early",
                    "the file is cut short: copy or download it again",
                )
            if not num_bytes:
                return np.empty(0, np.uint8)
            part = mmap.mmap(
                stream.fileno(),
                before + num_bytes,
                access=mmap.ACCESS_COPY,
                offset=offset - before,
            )
        content = np.frombuffer(part, np.uint8)
        _populate(content)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # it was long enough just now
        raise UserError(f"{file}: another program cuts it short: {error}") from error
    return content[before:]


def _populate(content: NDArray[np.uint8]) -> None:
    """Bring all of a mapping into memory.

    Raises:
        OSError: The disk cannot read it.
    """
    place, size = ctypes.c_void_p(content.ctypes.data), ctypes.c_size_t(content.size)
    if _LIBRARY.madvise(place, size, _MADV_POPULATE_READ):
        error = ctypes.get_errno()
        if error != errno.EINVAL:  # on other systems it is read when it is needed
            raise OSError(error, os.strerror(error))


def windows(
    file: Path, start: int = 0, num_bytes: int | None = None
) -> Iterator[NDArray[np.uint8]]:
    """Yield a part of a file, a few megabytes at a time.

    Args:
        file: The file.
        start: Where the part begins.
        num_bytes: How long it is; None: up to the end.

    Raises:
        UserError: It cannot be read.
    """
    try:
        end = file.stat().st_size if num_bytes is None else start + num_bytes
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    for place in range(start, end, _WINDOW_BYTES):
        yield read_bytes(file, place, min(_WINDOW_BYTES, end - place))
