"""Rewards of one's own, as they are configured: each scores answers, all of them at once."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Self

from alignctl.config.rewards import RewardFunction
from alignctl.rewards.processes import Ended, Processes
from alignctl.rewards.remote import CONCURRENCY, Remote
from alignctl.rewards.results import Answer, Result, fail

MOST_ANSWERS = 64
"""Of one call with `batched`."""

_TRIED = 16
"""After so many calls without a single score, the others are not made."""


class LocalFunction:
    """A function in a file, in processes of its own; a context manager, which ends them."""

    def __init__(self, function: RewardFunction, num_workers: int) -> None:
        """Start nothing yet."""
        self._function = function
        how = "many" if function.batched else "one"
        self._processes = Processes(
            f"reward {function.called}",
            f"the log has its own message; try it: alignctl rewards test {function.file}",
            ["-m", "alignctl.rewards.function_worker", str(function.file), function.name, how],
            # The same answers get the same scores; and the GPUs are the ranks' own.
            {"PYTHONHASHSEED": "0", "CUDA_VISIBLE_DEVICES": ""},
            num_workers=num_workers,
            clock_seconds=function.timeout_seconds,
        )

    def __enter__(self) -> Self:
        self._processes.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._processes.__exit__()

    def check(self) -> None:
        """Import the file in a process, to know that it can be.

        Raises:
            UserError: It cannot, with its line and what it raised.
            RunError: The process died, or did not start in time.
        """
        self._processes.wait_until_ready()

    def results(self, tasks: Sequence[dict[str, list[Any]]]) -> list[list[Result]]:
        """Score the answers of tasks; a list for each, in their order."""
        replies = self._processes.replies(tasks, range(len(tasks)))
        return [
            self._read(replies[place], len(task["prompts"])) for place, task in enumerate(tasks)
        ]

    def _read(self, reply: Any, count: int) -> list[Result]:
        if not isinstance(reply, Ended):
            return [Result(**each) for each in reply]
        seconds = self._function.timeout_seconds
        late = f"killed after {seconds:g} s (timeout_seconds)"
        return [fail(late if reply.how == "timeout" else "its process died")] * count


class Functions:
    """All rewards of one's own; a context manager, which ends their processes and threads."""

    def __init__(self, functions: Sequence[RewardFunction], num_workers: int) -> None:
        """Start nothing yet.

        Args:
            functions: The rewards.
            num_workers: Processes of each that is in a file.
        """
        self.functions = functions
        self._rewards: list[LocalFunction | Remote] = [
            LocalFunction(each, num_workers)
            if each.url is None
            else Remote(each.url, each.timeout_seconds)
            for each in functions
        ]
        self._at_once = [num_workers if each.url is None else CONCURRENCY for each in functions]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            for each in self._rewards:
                self._stack.enter_context(each)
            self._threads = self._stack.enter_context(ThreadPoolExecutor(len(self._rewards) or 1))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def check(self) -> None:
        """Import the files in processes, to know that they can be.

        Raises:
            UserError: One cannot.
            RunError: A process died, or did not start in time.
        """
        for each in self._rewards:
            if isinstance(each, LocalFunction):
                each.check()

    def results(self, answers: Sequence[Answer]) -> list[list[Result]]:
        """Score answers by each reward; the rewards are at work at the same time.

        Args:
            answers: B in all, in any number.

        Returns:
            For each reward a result for each answer, in their order.

        Raises:
            RunError: Processes do not start.
        """
        places = range(len(self._rewards))
        return list(self._threads.map(lambda place: self._score(place, answers), places))

    def _score(self, place: int, answers: Sequence[Answer]) -> list[Result]:
        """Score answers by one reward; give up where it has not scored one of the first."""
        reward, size = self._rewards[place], MOST_ANSWERS if self.functions[place].batched else 1
        tasks = [_task(answers[start : start + size]) for start in range(0, len(answers), size)]
        found: list[Result] = []
        tried = max(_TRIED, self._at_once[place])
        for some in (tasks[:tried], tasks[tried:]):
            if found and all(each.score is None for each in found):
                last = fail(f"not tried, as {len(found)} others failed: {found[-1].failure}")
                return found + [last] * (len(answers) - len(found))
            found += [each for results in reward.results(some) for each in results]
        return found


def _task(answers: Sequence[Answer]) -> dict[str, list[Any]]:
    return {
        "prompts": [each.prompt for each in answers],
        "completions": [each.completion for each in answers],
        "rows": [each.row for each in answers],
    }
