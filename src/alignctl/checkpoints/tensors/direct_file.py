"""A file that is written from its beginning to its end, past the system's cache where that works.

Of what goes through the cache, the kernel first has to find and clear every page, which took twice
as long as the disk itself. What is written so is on the disk at once, and leaves the cache to what
is read again.
"""

import contextlib
import errno
import fcntl
import io
import mmap
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

BLOCK_BYTES = 8 << 20
"""Bytes that are written at once. A shorter file goes through the cache, as the end of any does:
only whole pages can go past it."""

_NUM_BLOCKS = 4
"""Of which one is filled while the others wait for the disk: tensors come in bursts."""

_O_DIRECT = getattr(os, "O_DIRECT", 0)
"""Which Linux has, and file systems of it may refuse."""


class DirectFile(io.RawIOBase):
    """Fills one block while a thread writes the others. It cannot seek.

    An error of the disk is raised by a later call, `close` at the latest, and by all that follow:
    nothing is written behind what is missing.
    """

    def __init__(self, file: io.FileIO) -> None:
        """Take over a file.

        Args:
            file: A new one, which nobody else writes; it is closed with this one.
        """
        super().__init__()
        self._file = file
        self._pool = ThreadPoolExecutor(1)
        # Memory of its own begins with a page, as the disk wants it.
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        maps = (mmap.mmap(-1, BLOCK_BYTES, private) for _ in range(_NUM_BLOCKS))
        self._free = [memoryview(each) for each in maps]
        self._block = self._free.pop()
        self._filled = 0
        self._num_bytes = 0
        self._pending: deque[Future[memoryview]] = deque()
        self._error: OSError | None = None
        self._is_direct = False

    def write(self, content: "Buffer") -> int:
        """Take as many bytes as there is room for; return their number."""
        if self._error is not None:
            raise self._error
        whole = memoryview(content).cast("B")
        count = min(len(whole), BLOCK_BYTES - self._filled)
        self._block[self._filled : self._filled + count] = whole[:count]
        self._filled += count
        self._num_bytes += count
        if self._filled == BLOCK_BYTES:
            self._hand_over()
        return count

    def _hand_over(self) -> None:
        """Give the full block to the thread that writes, and take an empty one."""
        if self._num_bytes == BLOCK_BYTES:
            with contextlib.suppress(OSError):  # not on this file system
                self._set_direct(wanted=True)
        self._pending.append(self._pool.submit(self._write, self._block))
        self._block = self._free.pop() if self._free else self._pending.popleft().result()
        self._filled = 0

    def _write(self, block: memoryview) -> memoryview:
        rest = block
        while rest:
            if self._error is not None:
                raise self._error
            try:
                count = os.write(self._file.fileno(), rest)
            except OSError as error:
                # The disk may want larger units than pages, or have written less than one.
                if error.errno != errno.EINVAL or not self._is_direct:
                    self._error = error
                    continue
                self._set_direct(wanted=False)
            else:
                rest = rest[count:]
        return block

    def _set_direct(self, *, wanted: bool) -> None:
        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        flags = flags | _O_DIRECT if wanted else flags & ~_O_DIRECT
        fcntl.fcntl(self._file, fcntl.F_SETFL, flags)
        self._is_direct = wanted

    def close(self) -> None:
        """Write the rest.

        Raises:
            OSError: Something could not be written.
        """
        if self.closed:
            return
        try:
            while self._pending:
                self._pending.popleft().result()
            if self._is_direct:
                self._set_direct(wanted=False)
            self._write(self._block[: self._filled])
        finally:
            self._pool.shutdown()
            self._file.close()
            super().close()

    def tell(self) -> int:
        """Return the number of bytes that were taken."""
        return self._num_bytes

    def writable(self) -> bool:
        """Return True: it can be written, and nothing else."""
        return True
