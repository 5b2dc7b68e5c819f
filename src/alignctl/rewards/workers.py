"""Rules in processes of their own, which end when an answer takes too long."""

import json
import os
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from alignctl.errors import RunError
from alignctl.rewards.rules import Reason, Verdict
from alignctl.rewards.worker import TIME_OVER

START_SECONDS = 120.0
"""How long a worker may take to import its libraries, on a machine that is busy."""

CLOCK_FACTOR = 20.0
"""How many times its processor time a task may take by the clock, on a machine that is busy: only a
process that waits, for memory that is on a disk say, reaches this limit before the other."""


@dataclass(frozen=True)
class Task:
    """An answer to check.

    Attributes:
        completion: All that the model wrote after the prompt.
        reference: The reference answer.
        eval_func: A key of `RULES`.
    """

    completion: str
    reference: str
    eval_func: str


class _Worker:
    """A process and the task that it is at: a place in the tasks, or None.

    A fresh interpreter, and no fork: a rank's threads, devices and process groups stay its own. A
    session of its own keeps the terminal's signals away.
    """

    def __init__(self, limit_seconds: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "alignctl.rewards.worker", str(limit_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # sympy orders terms by hashes: the same answers must always be equal.
            env={**os.environ, "PYTHONHASHSEED": "0"},
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.tasks, self.reasons = self.process.stdin, self.process.stdout
        self.is_ready = False
        self.place: int | None = None
        self.deadline = time.monotonic() + START_SECONDS

    def send(self, place: int, task: Task, clock_seconds: float) -> None:
        """Give a task to a worker that waits for one, so that the pipe takes it at once."""
        self.place = place
        self.deadline = time.monotonic() + clock_seconds
        try:
            self.tasks.write(json.dumps(vars(task)).encode() + b"\n")
            self.tasks.flush()
        except BrokenPipeError:
            self.process.kill()  # it has just died; its end is read like any other

    def kill(self) -> None:
        """Kill the process, whatever it is doing, and wait until it is gone."""
        self.process.kill()
        self.process.wait()
        self.reasons.close()
        with suppress(BrokenPipeError):  # what a dead process did not read is of no use
            self.tasks.close()


class RuleWorkers:
    """Worker processes for rules; a context manager, which ends them.

    A worker is at one task at a time. One that exceeds its time is replaced, and its task is tried
    once more when all others are done, by one process while the others rest; then it counts as
    `timeout`. A process that dies is replaced, and its task counts as `crashed`.
    """

    def __init__(self, num_workers: int = 2, limit_seconds: float = 5.0) -> None:
        """Start nothing yet.

        Args:
            num_workers: Processes.
            limit_seconds: Processor time for one answer; by the clock, `CLOCK_FACTOR` times it.
        """
        self._num_workers = num_workers
        self._limit_seconds = limit_seconds
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

    def verdicts(self, tasks: Sequence[Task]) -> list[Verdict]:
        """Check answers.

        Args:
            tasks: Answers, in any number.

        Returns:
            A verdict for each, in the order of the tasks.

        Raises:
            RunError: When workers do not start, for which their messages in the log say why.
        """
        found = self._reasons(tasks, range(len(tasks)))
        for place in [place for place, reason in found.items() if reason == "timeout"]:
            found |= self._reasons(tasks, [place])
        return [Verdict(found[place]) for place in range(len(tasks))]

    def _reasons(self, tasks: Sequence[Task], places: Sequence[int]) -> dict[int, Reason]:
        """Ask the workers for the reasons of the tasks at these places."""
        found: dict[int, Reason] = {}
        waiting = deque(places)
        while len(found) < len(places):
            for worker in [w for w in self._workers if w.is_ready and w.place is None]:
                if worker.process.poll() is not None:  # it died while it was idle
                    self._end(worker)
                    self._start()
                elif waiting:
                    place = waiting.popleft()
                    worker.send(place, tasks[place], CLOCK_FACTOR * self._limit_seconds)
            found |= self._wait()
        return found

    def _wait(self) -> dict[int, Reason]:
        """Wait until something happens, and return the reasons of the tasks that are done."""
        busy = [w for w in self._workers if w.place is not None or not w.is_ready]
        seconds = min(worker.deadline for worker in busy) - time.monotonic()
        done: dict[int, Reason] = {}
        for key, _ in self._selector.select(max(seconds, 0)):
            worker: _Worker = key.data
            line = worker.reasons.readline()
            if not line.endswith(b"\n"):
                is_over = worker.process.wait() == -TIME_OVER
                self._replace(worker, "timeout" if is_over else "crashed", done)
            elif not worker.is_ready:
                worker.is_ready = True
            elif worker.place is not None:
                done[worker.place] = json.loads(line)
                worker.place = None
        for worker in [w for w in busy if w in self._workers]:
            is_busy = worker.place is not None or not worker.is_ready
            if is_busy and worker.deadline < time.monotonic():
                self._replace(worker, "timeout", done)
        return done

    def _replace(self, worker: _Worker, reason: Reason, done: dict[int, Reason]) -> None:
        if not worker.is_ready:
            raise RunError(
                "a process for rule rewards "
                + ("died on its start" if reason == "crashed" else "did not start in time"),
                "the log has its own message; `alignctl doctor` looks for latex2sympy2_extended",
            )
        if worker.place is not None:
            done[worker.place] = reason
        self._end(worker)
        self._start()

    def _start(self) -> None:
        worker = _Worker(self._limit_seconds)
        self._workers.append(worker)
        self._selector.register(worker.reasons, selectors.EVENT_READ, worker)

    def _end(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        self._selector.unregister(worker.reasons)
        worker.kill()
