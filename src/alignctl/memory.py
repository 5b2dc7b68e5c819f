"""How this process keeps memory that it has freed."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

# Parameters of mallopt, from glibc's malloc.h, and glibc's own values of two of them.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8
_DEFAULTS = {_M_MMAP_MAX: 65536, _M_TRIM_THRESHOLD: 128 * 1024}


def keep_freed() -> None:
    """Lets large tensors reuse the memory of those before, as the CUDA allocator does on a GPU.

    By itself glibc gives every large block back to the kernel, which clears its pages one by one
    when they are wanted again: up to a tenth of the time of a training step, and more than half
    of that of a conversion.
    """
    libc = _glibc()
    if libc:
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)
        # What one thread frees, another one reuses.
        libc.mallopt(_M_ARENA_MAX, 1)


@contextmanager
def freed_is_kept() -> Iterator[None]:
    """Keeps freed memory for a while, and gives it back at the end.

    For work that goes through many tensors of a few sizes. Where sizes vary more, what is kept
    does not fit what is wanted next, and both are held.
    """
    keep_freed()
    try:
        yield
    finally:
        libc = _glibc()
        if libc:
            for parameter, value in _DEFAULTS.items():
                libc.mallopt(parameter, value)
            libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") else None
