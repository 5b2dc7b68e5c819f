"""Work on many items in several processes, whose results come in the order of the items."""

import ctypes
import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from alignctl.errors import AlignctlError, RunError

_PR_SET_PDEATHSIG = 1

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
SetupT = TypeVar("SetupT")


def available_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def map_in_order(
    work: Callable[[ItemT], ResultT],
    items: Iterable[ItemT],
    workers: int,
    begin: Callable[[SetupT], None],
    setup: SetupT,
) -> Iterator[ResultT]:
    """Apply a function to items; few are in memory at a time.

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
    started: list[_Worker[ItemT, ResultT]] = []
    idle: SimpleQueue[_Worker[ItemT, ResultT]] = SimpleQueue()
    threads = ThreadPoolExecutor(workers)

    def apply(item: ItemT) -> ResultT:
        worker = idle.get()  # there are as many as threads
        try:
            return worker.apply(item)
        finally:
            idle.put(worker)

    try:
        for _ in range(workers):
            worker = _Worker(work, begin, setup)
            started.append(worker)
            idle.put(worker)
        yield from _results(threads, apply, items, 2 * workers + 1)
    finally:
        for worker in started:  # a thread that waits for one sees its end
            worker.process.kill()
        threads.shutdown(cancel_futures=True)
        for worker in started:
            worker.process.join()
            worker.connection.close()


class _Worker(Generic[ItemT, ResultT]):
    """A process, and a connection that no other process has an end of.

    So whoever writes or reads here is told by the kernel when the process is gone. Where processes
    share a queue, one that is killed may leave it locked for ever.
    """

    def __init__(
        self,
        work: Callable[[ItemT], ResultT],
        begin: Callable[[SetupT], None],
        setup: SetupT,
    ) -> None:
        self.work = work
        self.first: tuple[Callable[[Any], None], Any] | None = (begin, setup)
        # A fork would copy locks that a tokenizer's threads hold.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, os.getpid()), daemon=True)
        self.process.start()
        theirs.close()

    def apply(self, item: ItemT) -> ResultT:
        """Compute the result of an item in the worker, and wait for it."""
        if self.first is not None:
            self._call(*self.first)
            self.first = None
        result: ResultT = self._call(self.work, item)
        return result

    def _call(self, function: Callable[[Any], Any], argument: object) -> Any:
        try:
            self.connection.send((function, argument))
            result, error = self.connection.recv()
        except (EOFError, OSError) as gone:
            raise RunError(
                "a worker process was killed, perhaps by the system for want of memory",
                "start the command again; if memory was short, with fewer --workers or cores",
            ) from gone
        if error is not None:
            raise error
        return result


def _results(
    threads: ThreadPoolExecutor,
    apply: Callable[[ItemT], ResultT],
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
        except AlignctlError as error:  # errors of the items before it come first
            failure = error
            break
        waiting.append(threads.submit(apply, item))
        if len(waiting) >= window:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
    if failure is not None:
        raise failure


def _serve(connection: Connection, parent: int) -> None:
    """Call, in a worker, what it is sent, and answer with the result or what was raised."""
    # Ctrl-C reaches every process of the terminal; the parent ends the workers in good order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel was asked to tell
        os._exit(1)
    while True:
        function, argument = connection.recv()
        result, failure = None, None
        try:
            result = function(argument)
        except Exception as error:
            error.add_note(traceback.format_exc())  # where it was raised, which no pickle tells
            failure = error
        connection.send((result, failure))
