r"""`math_rule`: whether the final answer of a completion equals the reference.

Plain numbers, nearly all there is in GSM8K, are compared exactly as fractions; a percentage also
equals its hundredth. Words are compared as words. All else is read as LaTeX and compared by
math-verify, with sympy, which can take for ever: its own time limits are signals that only work in
a main thread, so they are off, and the rule runs in `alignctl.rewards.workers`. LaTeX is read by a
grammar; nothing is ever evaluated as Python.
"""

import re
from fractions import Fraction
from typing import Any, Literal

from alignctl.rewards.extraction import Quantity, clean, final_answer, is_words, quantity

TOLERANCE = Fraction(1, 10_000)
"""How far a number that is no integer may be from the reference: relative to it, and absolutely.
The first is ChatLearn's; without the second, prices of some thousands would equal their neighbours.
"""


def math_rule(
    completion: str, reference: str
) -> Literal["correct", "wrong", "no_answer", "bad_reference"]:
    """Compares the final answer of a completion with the reference answer.

    Args:
        completion: All that the model wrote after the prompt.
        reference: The answer, or a text that marks it as a completion would (`#### 72`).
    """
    is_marked = "####" in reference or "\\boxed" in reference
    expected = final_answer(reference) if is_marked else clean(reference)
    if not expected or not _is_readable(expected):
        return "bad_reference"
    answer = final_answer(completion)
    if answer is None or not _is_readable(answer):
        return "no_answer"
    return "correct" if _is_equal(expected, answer) else "wrong"


def _is_readable(answer: str) -> bool:
    # An empty group is LaTeX, too.
    has_content = re.search(r"\w", answer) is not None
    is_plain = quantity(answer) is not None or is_words(answer)
    return is_plain or (has_content and bool(_parsed(answer)))


def _is_equal(expected: str, answer: str) -> bool:
    if expected.casefold() == answer.casefold():
        return True
    if is_words(expected) or is_words(answer):
        return expected.strip("()").casefold() == answer.strip("()").casefold()
    numbers = quantity(expected), quantity(answer)
    if numbers[0] is not None and numbers[1] is not None:
        return _is_same_number(numbers[0], numbers[1])
    return _verified(_parsed(expected), _parsed(answer))


def _is_same_number(expected: Quantity, answer: Quantity) -> bool:
    if _is_close(expected.value, answer.value):
        return True
    if expected.is_percent == answer.is_percent:
        return False
    if expected.is_percent:
        return _is_close(expected.value / 100, answer.value)
    return _is_close(expected.value, answer.value / 100)


def _is_close(expected: Fraction, answer: Fraction) -> bool:
    if expected.denominator == answer.denominator == 1:
        return expected == answer
    return abs(expected - answer) <= TOLERANCE * min(Fraction(1), abs(expected))


def _parsed(answer: str) -> list[Any]:
    """The expression that an answer is, as math-verify reads LaTeX; an empty list for none."""
    from math_verify import LatexExtractionConfig, parse

    number = quantity(answer)
    if number is not None:  # without its unit
        answer = f"\\frac{{{number.value.numerator}}}{{{number.value.denominator}}}"
    found: list[Any] = parse(
        f"${answer}$",
        extraction_config=[LatexExtractionConfig()],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    return found[:1]


def _verified(expected: list[Any], answer: list[Any]) -> bool:
    from math_verify import verify

    return bool(verify(expected, answer, timeout_seconds=None))
