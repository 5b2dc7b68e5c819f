"""What a judge's words mean: a rating from 1 to 10, or which of two answers is better."""

import re
from dataclasses import dataclass
from typing import Literal

LOWEST, HIGHEST = 1.0, 10.0

Problem = Literal["no_rating", "out_of_range", "refused"]
"""Why there is no rating: none was found; it is none from 1 to 10; the server took no such prompt,
for example since it is too long."""

Verdict = Literal["A", "B", "tie"]

_NUMBER = r"(-?\d+(?:\.\d+)?)(?:\s*/\s*10)?"
_RATING = re.compile(rf"\[\[\s*{_NUMBER}\s*\]\]")
_PLAIN_RATING = re.compile(
    rf"\brating\W{{1,6}}?{_NUMBER}(?![\d.]*\d)(?!\s*(?:-|to)\s*\d)", re.IGNORECASE
)
_VERDICT = re.compile(r"\[\[([ABC])\]\]")
_MEANING: dict[str, Verdict] = {"A": "A", "B": "B", "C": "tie"}


@dataclass(frozen=True)
class Grade:
    """A rating, or why there is none."""

    score: float | None
    problem: Problem | None = None


def rating(text: str) -> Grade:
    """Read `[[5]]`; without any brackets of that kind, `Rating: 5`.

    The last one counts, where FastChat takes the first: the prompt asks for a rating after the
    explanation, and a judge that thinks aloud may weigh others before.
    """
    found = _RATING.findall(text) or _PLAIN_RATING.findall(text)
    if not found:
        return Grade(None, "no_rating")
    score = float(found[-1])
    return Grade(score) if LOWEST <= score <= HIGHEST else Grade(None, "out_of_range")


def verdict(text: str) -> Verdict | None:
    """Read `[[A]]`, `[[B]]` or, for a tie, `[[C]]`; the last one counts. None without any."""
    found = _VERDICT.findall(text)
    return _MEANING[found[-1]] if found else None
