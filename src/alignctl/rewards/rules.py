"""The rules that rows of prompts may name in `eval_func`, and what they say of an answer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Reason = Literal["correct", "wrong", "no_answer", "bad_reference", "timeout", "crashed"]
"""no_answer: nothing that can be read as one. bad_reference: the reference cannot be read. timeout,
crashed: the process that compared them exceeded its time, or died; the others are not touched."""


@dataclass(frozen=True)
class Verdict:
    """What a rule says of one answer.

    Attributes:
        reason: Why it has its score.
    """

    reason: Reason

    @property
    def score(self) -> float:
        """1.0 for a correct answer, otherwise 0.0."""
        return float(self.reason == "correct")


Rule = Callable[[str, str], Reason]
"""Compares a completion with a reference answer; may take for ever, so it runs in `RuleWorkers`."""


def _apply_math_rule(completion: str, reference: str) -> Reason:
    """Compare the final answer of a completion with the reference answer."""
    # It brings in sympy, which takes a second: whoever only names a rule does without.
    from alignctl.rewards.math_rule import math_rule

    return math_rule(completion, reference)


RULES: dict[str, Rule] = {"math_rule": _apply_math_rule}
"""The rules by the names that rows have for them."""
