r"""Formulas that are made at random, with values that are known without any of the rule's code.

A tree is written as LaTeX here, and computed here with Python's own numbers. Another writing of the
same tree has to be equal to it; a tree with one constant changed equals it only if its value does.
"""

import cmath
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from alignctl.rewards.math_rule import math_rule

Tree = tuple[Any, ...]
NUMBERS = st.integers(1, 30).map(lambda n: ("number", n))
NAMES = st.sampled_from("xyn").map(lambda name: ("name", name))
PLACES: list[dict[str, complex]] = [
    {"x": 0.37, "y": 1.93, "n": -0.71},
    {"x": -1.21, "y": 0.43, "n": 2.3},
    {"x": 2.11, "y": -0.58, "n": 0.9},
]


def trees(leaves: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.tuples(st.sampled_from(["+", "-", "*", "frac"]), inner, inner),
            st.tuples(st.sampled_from(["root", "minus", "sin", "cos"]), inner),
            st.tuples(st.just("power"), inner, st.integers(2, 4)),
        ),
        max_leaves=5,
    )


def value(tree: Tree, names: dict[str, complex]) -> complex:
    kind, *parts = tree
    if kind == "number":
        return complex(parts[0])
    if kind == "name":
        return names[parts[0]]
    first = value(parts[0], names)
    if kind == "power":
        return first ** int(parts[1])
    one: dict[str, Callable[[complex], complex]] = {
        "root": cmath.sqrt,
        "minus": lambda a: -a,
        "sin": cmath.sin,
        "cos": cmath.cos,
    }
    if kind in one:
        return one[kind](first)
    second = value(parts[1], names)
    if kind == "frac":
        return first / second
    return first + second if kind == "+" else first - second if kind == "-" else first * second


def latex(tree: Tree, *, is_other: bool = False) -> str:
    """A tree as LaTeX, with brackets around all that could be misread; or written otherwise."""
    kind, *parts = tree
    if kind in ("number", "name"):
        return str(parts[0])
    texts = [latex(part, is_other=is_other) for part in parts if isinstance(part, tuple)]
    inner = [f"({text})" for text in texts]
    if kind == "power":
        return f"{inner[0]}^{{{parts[1]}}}"
    if kind == "root":
        return f"{inner[0]}^{{1/2}}" if is_other else f"\\sqrt{{{texts[0]}}}"
    if kind == "minus":
        return f"0-{inner[0]}" if is_other else f"-{inner[0]}"
    if kind in ("sin", "cos"):
        return f"\\{kind}{inner[0]}" if is_other else f"\\{kind} \\left({texts[0]}\\right)"
    if kind == "frac":
        return f"{inner[0]}/{inner[1]}" if is_other else f"\\dfrac{{{texts[0]}}}{{{texts[1]}}}"
    if kind == "*":
        return f"{inner[1]}{inner[0]}" if is_other else f"{inner[0]} \\cdot {inner[1]}"
    if kind == "-":
        return f"-{inner[1]}+{inner[0]}" if is_other else f"{texts[0]} - {inner[1]}"
    return f"{inner[1]} + {texts[0]}" if is_other else f"{texts[0]}+{inner[1]}"


def changed(tree: Tree, place: int) -> Tree:
    """A tree with 1 added to one of its numbers."""
    numbers = [0]

    def walk(each: Tree) -> Tree:
        kind, *parts = each
        if kind == "number":
            numbers[0] += 1
            return ("number", parts[0] + (numbers[0] - 1 == place))
        return (kind, *(walk(part) if isinstance(part, tuple) else part for part in parts))

    return walk(tree)


def values(tree: Tree) -> list[complex]:
    try:
        found = [value(tree, names) for names in PLACES]
    except (ZeroDivisionError, OverflowError):
        found = []
    assume(found and all(cmath.isfinite(each) and 1e-9 < abs(each) < 1e9 for each in found))
    return found


@settings(deadline=None, max_examples=60)
@given(tree=trees(st.one_of(NUMBERS, NAMES)), place=st.integers(0, 3))
def test_formulas_are_equal_if_and_only_if_their_values_are(tree: Tree, place: int) -> None:
    reference, wanted = latex(tree), values(tree)
    assert math_rule(f"\\boxed{{{latex(tree, is_other=True)}}}", reference) == "correct"
    other = changed(tree, place)
    is_same = all(
        math.isclose(abs(a - b), 0, abs_tol=1e-9 * abs(b))
        for a, b in zip(values(other), wanted, strict=True)
    )
    verdict = math_rule(f"\\boxed{{{latex(other)}}}", reference)
    assert (verdict == "correct") == is_same


@pytest.mark.parametrize(
    "answer",
    [
        r"9^{9^{9}}",
        r"10^{10^{10}}",
        r"99999999!",
        r"((99!)!)!",
        r"x^{x^{x^{x^{x}}}}",
        "x^" * 40 + "2",
        r"e^{e^{e^{e^{e}}}}",
        r"\binom{99999}{44444}",
        "(" * 140 + "x" + ")" * 140,
        r"\frac{1}{" * 12 + "x" + "}" * 12,
        "|" * 40 + "x" + "|" * 40,
        "-" * 250 + "1",
        r"\pm 1" * 30,
        "1/" * 120 + "9",
        r"1e999999999",
    ],
)
def test_no_answer_is_computed_that_is_too_large(answer: str) -> None:
    """Each of them would fill the time or the memory of a program that computes it."""
    assert math_rule(f"\\boxed{{{answer}}}", "7") in ("wrong", "no_answer")
