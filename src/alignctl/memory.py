"""How this process gets the memory of large tensors, and whether it keeps what it has freed."""

import ctypes
import os

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def use_large_pages() -> None:
    """Has large tensors made of pages of 2 MB, of which the kernel clears far fewer than of 4 kB.

    For work that makes and drops many large tensors: half of its time was the kernel's. It is
    PyTorch that reads the variable, when it makes its first tensor, so call this before that.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_freed() -> None:
    """Lets a step reuse the memory of the one before, as the CUDA allocator does on a GPU.

    By itself glibc gives every large block back to the kernel, which clears its pages one by one
    when they are wanted again: up to a tenth of the time of a training step. Only for work whose
    tensors have the same sizes again and again; others would not fit into what was kept.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc's own
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, -1)
