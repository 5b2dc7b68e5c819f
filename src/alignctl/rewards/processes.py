"""Worker processes that can be killed: a line of JSON to each, a line of JSON back."""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Self

from alignctl.errors import RunError, UserError

START_SECONDS = 120.0
"""How long a worker may take to import its libraries, on a machine that is busy."""

TIME_OVER = signal.SIGPROF
"""The signal that a process dies of when a task has used up its processor time."""

READY = "ready"
"""What a worker says first; anything else is a reason why it cannot work."""


@dataclass(frozen=True)
class Ended:
    """What is known of a task whose process has ended."""

    how: Literal["timeout", "crashed"]


class _Worker:
    """A process and the task that it is at: a place in the tasks, or None.

    A fresh interpreter, and no fork: a rank's threads, devices and process groups stay its own. A
    session of its own keeps the terminal's signals away.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.tasks, self.replies = self.process.stdin, self.process.stdout
        self.is_ready = False
        self.place: int | None = None
        self.deadline = time.monotonic() + START_SECONDS

    def send(self, place: int, task: object, clock_seconds: float) -> None:
        """Give a task to a worker that waits for one, so that the pipe takes it at once."""
        self.place = place
        self.deadline = time.monotonic() + clock_seconds
        try:
            self.tasks.write(json.dumps(task).encode() + b"\n")
            self.tasks.flush()
        except BrokenPipeError:
            self.process.kill()  # it has just died; its end is read like any other

    def kill(self) -> None:
        """Kill the process, whatever it is doing, with what it has started; wait for its end."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.replies.close()
        with suppress(BrokenPipeError):  # what a dead process did not read is of no use
            self.tasks.close()


class Processes:
    """Worker processes; a context manager, which ends them.

    A worker is at one task at a time. One that exceeds its time, or dies, is replaced.
    """

    def __init__(
        self,
        what: str,
        hint: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        num_workers: int,
        clock_seconds: float,
    ) -> None:
        """Start nothing yet.

        Args:
            what: What messages call a process.
            hint: What to do when one does not start.
            command: Arguments of Python.
            environment: What is different in its environment.
            num_workers: Processes.
            clock_seconds: By the clock, for one task.
        """
        self._what, self._hint = what, hint
        self._command, self._environment = command, environment
        self._num_workers = num_workers
        self._clock_seconds = clock_seconds
        self._selector = selectors.DefaultSelector()
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        for _ in range(self._num_workers):
            self._start()
        return self

    def __exit__(self, *_: object) -> None:
        for worker in [*self._workers]:
            self._end(worker)
        self._selector.close()

    def wait_until_ready(self) -> None:
        """Wait until one worker is ready, so that it is known that they can be.

        Raises:
            RunError: It died on its start, or did not start in time.
            UserError: It says why it cannot work.
        """
        while not any(worker.is_ready for worker in self._workers):
            self._wait()

    def replies(self, tasks: Sequence[object], places: Iterable[int]) -> dict[int, Any | Ended]:
        """Ask the workers for the replies to the tasks at these places.

        Raises:
            RunError: When workers do not start, for which their messages in the log say why.
            UserError: When they say themselves why not.
        """
        found: dict[int, Any | Ended] = {}
        waiting = deque(places)
        wanted = len(waiting)
        while len(found) < wanted:
            for worker in [w for w in self._workers if w.is_ready and w.place is None]:
                if worker.process.poll() is not None:  # it died while it was idle
                    self._end(worker)
                    self._start()
                elif waiting:
                    place = waiting.popleft()
                    worker.send(place, tasks[place], self._clock_seconds)
            found |= self._wait()
        return found

    def _wait(self) -> dict[int, Any | Ended]:
        """Wait until something happens, and return the replies to the tasks that are done."""
        busy = [w for w in self._workers if w.place is not None or not w.is_ready]
        seconds = min(worker.deadline for worker in busy) - time.monotonic()
        done: dict[int, Any | Ended] = {}
        for key, _ in self._selector.select(max(seconds, 0)):
            worker: _Worker = key.data
            line = worker.replies.readline()
            if not line.endswith(b"\n"):
                is_over = worker.process.wait() == -TIME_OVER
                self._replace(worker, "timeout" if is_over else "crashed", done)
            elif not worker.is_ready:
                if (said := json.loads(line)) != READY:
                    raise UserError(f"{self._what}: {said}")
                worker.is_ready = True
            elif worker.place is not None:
                done[worker.place] = json.loads(line)
                worker.place = None
        for worker in [w for w in busy if w in self._workers]:
            is_busy = worker.place is not None or not worker.is_ready
            if is_busy and worker.deadline < time.monotonic():
                self._replace(worker, "timeout", done)
        return done

    def _replace(
        self, worker: _Worker, how: Literal["timeout", "crashed"], done: dict[int, Any | Ended]
    ) -> None:
        if not worker.is_ready:
            end = "died on its start" if how == "crashed" else "did not start in time"
            raise RunError(f"a process for {self._what} {end}", self._hint)
        if worker.place is not None:
            done[worker.place] = Ended(how)
        self._end(worker)
        self._start()

    def _start(self) -> None:
        worker = _Worker(self._command, self._environment)
        self._workers.append(worker)
        self._selector.register(worker.replies, selectors.EVENT_READ, worker)

    def _end(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        self._selector.unregister(worker.replies)
        worker.kill()
