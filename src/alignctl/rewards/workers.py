"""Rules in processes of their own, which end when an answer takes too long."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from alignctl.rewards.processes import Ended, Processes
from alignctl.rewards.rules import Reason, Verdict

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


class RuleWorkers:
    """Worker processes for rules; a context manager, which ends them.

    The task of one that exceeds its time is tried once more when all others are done, by one
    process while the others rest; then it counts as `timeout`. The task of one that dies counts as
    `crashed`.
    """

    def __init__(self, num_workers: int = 2, limit_seconds: float = 5.0) -> None:
        """Start nothing yet.

        Args:
            num_workers: Processes.
            limit_seconds: Processor time for one answer; by the clock, `CLOCK_FACTOR` times it.
        """
        self._processes = Processes(
            "rule rewards",
            "the log has its own message; `alignctl doctor` looks for latex2sympy2_extended",
            ["-m", "alignctl.rewards.worker", str(limit_seconds)],
            # sympy orders terms by hashes: the same answers must always be equal.
            {"PYTHONHASHSEED": "0"},
            num_workers=num_workers,
            clock_seconds=CLOCK_FACTOR * limit_seconds,
        )

    def __enter__(self) -> Self:
        self._processes.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._processes.__exit__()

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

    def _reasons(self, tasks: Sequence[Task], places: Iterable[int]) -> dict[int, Reason]:
        replies = self._processes.replies([vars(task) for task in tasks], places)
        return {
            place: reply.how if isinstance(reply, Ended) else reply
            for place, reply in replies.items()
        }
