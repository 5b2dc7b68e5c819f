"""Parts of files, mapped into memory one at a time.

What is in the system's cache is not copied, which took a fourth of a conversion's processor time.
A part counts as memory of this process, like one that was read, until its array is dropped.
"""

import contextlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignctl.errors import UserError

_WINDOW_BYTES = 8 << 20
"""Of a file that is looked at from its beginning to its end."""

_MADV_POPULATE_READ = 22
"""Of Linux since 5.14, and not in Python's `mmap` yet: what the disk cannot read is an error at
once, and not a signal later."""


def read_bytes(file: Path, offset: int, num_bytes: int) -> NDArray[np.uint8]:
    """A part of a file. What is written to the array does not reach the file.

    Raises:
        UserError: The file cannot be read, or ends before the part does.
    """
    before = offset % mmap.ALLOCATIONGRANULARITY
    try:
        with file.open("rb", buffering=0) as stream:
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
        with contextlib.suppress(ValueError):  # on other systems
            part.madvise(_MADV_POPULATE_READ)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    return np.frombuffer(part, np.uint8, num_bytes, before)


def windows(file: Path) -> Iterator[NDArray[np.uint8]]:
    """A whole file, a few megabytes at a time.

    Raises:
        UserError: It cannot be read.
    """
    try:
        size = file.stat().st_size
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    for start in range(0, size, _WINDOW_BYTES):
        yield read_bytes(file, start, min(_WINDOW_BYTES, size - start))
