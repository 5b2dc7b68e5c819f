"""Work on many items in several processes, whose results come in the order of the items."""

import ctypes
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from alignctl.errors import AlignctlError, RunError

_PR_SET_PDEATHSIG = 1

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
SetupT = TypeVar("SetupT")


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def map_in_order(
    work: Callable[[ItemT], ResultT],
    items: Iterable[ItemT],
    workers: int,
    begin: Callable[[SetupT], None],
    setup: SetupT,
) -> Iterator[ResultT]:
    """Applies a function to items; few are in memory at a time.

    Args:
        work: A module's function: processes import it.
        items: What it is given, in order.
        workers: Processes; with 1, everything happens in this one.
        begin: Called once in each process before its first item.
        setup: What it is given.

    Yields:
        The results in the order of the items. So of several failures the first item's is raised,
        as it would be by one process.

    Raises:
        RunError: A worker was killed.
    """
    if workers == 1:
        begin(setup)
        yield from map(work, items)
        return
    # A fork would copy locks that a tokenizer's threads hold.
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _begin, (begin, setup, os.getpid())
    )
    try:
        yield from _results(pool, work, items, 2 * workers + 1)
    except BrokenProcessPool as error:
        raise RunError(
            "a worker process was killed, perhaps by the system for want of memory",
            "start the command again, with fewer --workers if memory was short",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _results(
    pool: ProcessPoolExecutor,
    work: Callable[[ItemT], ResultT],
    items: Iterable[ItemT],
    window: int,
) -> Iterator[ResultT]:
    waiting: deque[Future[ResultT]] = deque()
    failure: AlignctlError | None = None
    source = iter(items)
    while True:
        try:
            item = next(source)
        except StopIteration:
            break
        except AlignctlError as error:  # what is wrong before it is told first
            failure = error
            break
        waiting.append(pool.submit(work, item))
        if len(waiting) >= window:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
    if failure is not None:
        raise failure


def _begin(begin: Callable[[SetupT], None], setup: SetupT, parent: int) -> None:
    # Ctrl-C reaches every process of the terminal; the parent ends the workers in good order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel was asked to tell
        os._exit(1)
    begin(setup)
