"""What a reward of one's own may say of an answer, and how that is read."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

LARGEST = 1e9
"""The largest magnitude of a score: in float32 it is still a number when it is squared."""

_METRIC = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}\Z")
_MOST_METRICS = 20
_TAKEN = ("std", "failed", "retried", "share")


@dataclass(frozen=True)
class Answer:
    """An answer to score.

    Attributes:
        prompt: What was asked: the last turn before the answer, as the row has it.
        completion: All that the model wrote after it.
        row: The row of the prompt, whole.
    """

    prompt: str
    completion: str
    row: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What a reward says of an answer.

    Attributes:
        score: Its score; None where it failed.
        failure: Why, in a line; None where it did not.
        metrics: Other numbers that it tells.
        retries: How many times it was asked again; of a request for several, with the first.
    """

    score: float | None
    failure: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    retries: int = 0


def fail(why: str) -> Result:
    """Make the result of a failure."""
    return Result(None, " ".join(why.split())[:500])


def read_result(value: object) -> Result:
    """Read a number, or a mapping of `score` and other numbers; anything else is a failure."""
    if not isinstance(value, Mapping):
        score = _number(value)
        return fail(_refusal("score", value)) if score is None else Result(score)
    if "score" not in value:
        return fail(f"no key 'score' in what it returned: {_short(list(value))}")
    if len(value) > _MOST_METRICS:
        return fail(f"{len(value) - 1} metrics beside the score; {_MOST_METRICS - 1} are told")
    numbers = {name: _number(each) for name, each in value.items()}
    for name, number in numbers.items():
        if number is None:
            return fail(_refusal(str(name), value[name]))
        if not isinstance(name, str) or not _METRIC.match(name) or name in _TAKEN:
            return fail(
                f"metric {_short(name)}: a name is letters, digits and _, 40 at most, and none of "
                f"{', '.join(_TAKEN)}"
            )
    found = {name: number for name, number in numbers.items() if number is not None}
    return Result(found.pop("score"), metrics=found)


def read_results(value: object, count: int) -> list[Result]:
    """Read the list that a call for several answers returned; one of another length is a failure.

    Args:
        value: What was returned.
        count: Answers of the call.
    """
    if not isinstance(value, list | tuple):
        value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, list | tuple):
        return [fail(f"it returned {_short(value)}, where a list is expected")] * count
    if len(value) != count:
        return [fail(f"it returned {len(value)} scores for {count} answers")] * count
    return [read_result(each) for each in value]


def _number(value: object) -> float | None:
    """Read a finite number; those of NumPy and torch have an item."""
    if not isinstance(value, Real) and hasattr(value, "item"):
        try:
            value = value.item()
        except (ValueError, RuntimeError, TypeError):  # of several elements
            return None
    if not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except (OverflowError, ValueError):
        return None
    return number if math.isfinite(number) and abs(number) <= LARGEST else None


def _refusal(name: str, value: object) -> str:
    return f"{name} is {_short(value)}, where a finite number of at most {LARGEST:.0e} is expected"


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:  # of a class of the user's
        return f"a {type(value).__name__} whose repr raises {type(error).__name__}"
    return text if len(text) <= 80 else f"{text[:80]}..."
