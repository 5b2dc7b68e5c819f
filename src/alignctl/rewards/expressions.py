r"""Expressions: read as LaTeX by the grammar behind math-verify, compared by their values.

The grammar is forgiving: it takes `2 3` for a sum, drops primes, and reads `1e3` as a product. So
it is given only what it reads rightly (`_ALLOWED`), with all that may mean two things refused. Two
expressions are equal if their values are, exactly where they are rational, otherwise with so many
digits that nothing that a text of this length can say disappears; with unknowns, at several points,
negative and positive. Nothing is simplified, so nothing takes for ever, and nothing is evaluated as
Python.
"""

import random
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from sympy import Expr, Float, I, Pow, Rational, Symbol, binomial, factorial
from sympy.core.function import AppliedUndef

from alignctl.rewards.quantities import NUMBER, Quantity, is_rounded

_MAX_DIGITS = 8_000
"""Powers and factorials of more digits are not computed."""
_MAX_DEPTH = 12
"""Brackets inside each other; the grammar's time grows with them."""
_MAX_STOREYS = 2
"""Powers in exponents; a tower of unknowns has no value that could be computed."""
_POINTS = 6
_FUNCTIONS = (
    r"sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|log|ln|exp|frac|sqrt|binom|pi|cdot"
    r"|times|div|lfloor|rfloor|lceil|rceil|infty"
)
_LETTERS = (
    r"alpha|beta|gamma|delta|epsilon|theta|lambda|mu|nu|rho|sigma|tau|phi|psi|omega|Delta|Omega"
)
_ALLOWED = re.compile(
    rf"(?:\\(?:{_FUNCTIONS}|{_LETTERS})(?![A-Za-z])|\d+|[A-Za-z]|[-+*/^_(){{}}|!\[\] ])+"
)
_OPERATORS = r"cdot|times|div"
_AMBIGUOUS = re.compile(
    # 1/2x and its like: a fraction times x, or one over a product?
    r"/\s?(?:\d+|[A-Za-z]|\\(?:pi|sqrt\{[^{}]*\})|\([^()]*\))\s?"
    rf"(?:[A-Za-z(\d]|\\(?!{_OPERATORS}))"
    r"|\d\s+\d|(?<![A-Za-z\\])[A-Za-z]\s?\d"  # a product, a list, or a name
    r"|\d\s?\\frac\{\d+\}\{\d+\}"  # a mixed number, or a product
    r"|(?<![A-Za-z\\])[A-Za-z]{4}|(?<![A-Za-z\\])[A-Za-z]{2,3}\s+[A-Za-z]{2}"  # words
    r"|(?<!sqrt)\[|(?:\|[^|]*){9}|\^\s?\\?\w+\s?\^|\\binom\{[^{}]{5,}\}|!\s?!|[-+*/^_]\s?$|^\s?[*/^_!]|[-+*/^_]\s?[*/^_)}]|\{\s?\}|\(\s?\)|\d_"
    r"|(?<![A-Za-z\\])[fghPF]\s?\("  # a function that nobody has defined
)


@dataclass(frozen=True)
class Expression:
    """A number or a formula.

    Attributes:
        tree: What sympy has for it, not evaluated.
        digits: How many digits its constants may need.
    """

    tree: Any
    digits: int


def read_expression(text: str) -> Expression | None:
    """Read canonical text; None if it is no expression, or can be read in several ways."""
    text = re.sub(r"(\d+(?:\.\d+)?)\s?\u00b0", r"(\\frac{\1\\pi}{180})", text)
    text = re.sub(rf"(?:{NUMBER})", _drop_point, text)
    # A logarithm without its base may be to 10 or to e: it is one to a base that is not known.
    text = re.sub(r"\\log(?![A-Za-z_])(?!\s?_)", r"\\log_{\\Omega}", text)
    text = re.sub(r"\\log_(\w)", r"\\log_{\1}", text)
    text = re.sub(r"\^\s?(-?\d{2,}|-\s?\d+)", r"^{\1}", text)
    text = _brace_group_powers(text)
    text = re.sub(r"(?<=[\d)])\s?(?=\()", r"\\cdot ", text)
    if not _ALLOWED.fullmatch(text) or _AMBIGUOUS.search(text) or _depth(text) > _MAX_DEPTH:
        return None
    tree = _parse(text)
    digits = None if tree is None or _storeys(tree) > _MAX_STOREYS else _digits(tree)
    return None if digits is None or digits > _MAX_DIGITS else Expression(tree, digits)


def make_expression(number: Quantity) -> Expression:
    """Make an expression of a plain number."""
    return Expression(Rational(number.value.numerator, number.value.denominator), 0)


def difference(left: Expression, right: Expression) -> Expression:
    """Subtract one expression from another."""
    return Expression(left.tree - right.tree, left.digits + right.digits)


def is_same_expression(expected: Expression, answer: Expression) -> bool:
    """Tell whether two expressions have the same value, wherever both have one."""
    exact = exact_value(expected), exact_value(answer)
    if exact[0] is not None and exact[1] is not None:
        return exact[0] == exact[1]
    values = _values(expected, answer)
    precision = _precision(expected, answer)
    return bool(values) and all(_is_same(x, y, precision) for x, y in values)


def is_proportional(expected: Expression, answer: Expression, *, by_positive: bool) -> bool:
    """Tell whether one is a constant, not 0, times the other, as for two sides of equations.

    Args:
        expected: An expression with an unknown.
        answer: Another.
        by_positive: The constant has to be positive, as for inequalities.
    """
    if not expected.tree.free_symbols or not answer.tree.free_symbols:
        return False
    pairs = [(x, y) for x, y in _values(expected, answer) if x and y]
    if len(pairs) < _POINTS // 2 or (
        by_positive and not all((y / x).is_positive for x, y in pairs)
    ):
        return False
    (x, y), *others = pairs
    return all(_is_same(a * y, b * x, _precision(expected, answer)) for a, b in others)


def is_decimal_of(number: Quantity, expression: Expression) -> bool:
    """Tell whether a decimal is the value of a constant, rounded or cut off."""
    if number.places is None or expression.tree.free_symbols:
        return False
    value = expression.tree.evalf(number.places + 30)
    if not value.is_Float:
        return False
    return is_rounded(number, Fraction(str(value)))


def exact_value(expression: Expression) -> Fraction | None:
    """Compute the value of a constant that is rational; None for any other."""
    if expression.tree.free_symbols:
        return None
    value = expression.tree.doit()
    return Fraction(int(value.p), int(value.q)) if value.is_Rational else None


def _drop_point(match: re.Match[str]) -> str:
    number = match[0].replace(",", "")
    if "." not in number:
        return number
    value = Fraction(number)
    return f"{{(\\frac{{{value.numerator}}}{{{value.denominator}}})}}"


def _brace_group_powers(text: str) -> str:
    """Write `x^(1/2)` with braces, where the bracket holds no other."""
    return re.sub(r"\^\s?\(([^()]*)\)", r"^{\1}", text)


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _parse(text: str) -> Any:
    reading = ConversionConfig(interpret_as_mixed_fractions=False, lowercase_symbols=False)
    try:
        tree = latex2sympy(text, is_real=None, normalization_config=None, conversion_config=reading)
    except Exception:  # the grammar raises this very class for what it cannot read
        return None
    if not isinstance(tree, Expr) or tree.has(AppliedUndef):
        return None
    return tree.xreplace({Symbol("i"): I}) if Symbol("i") in tree.free_symbols else tree


def _storeys(tree: Any) -> int:
    """Count the powers and factorials that stand on each other."""
    if not tree.args:
        return 0
    heights = [_storeys(part) for part in tree.args]
    if isinstance(tree, Pow):
        return max(heights[0], 1 + heights[1] if tree.args[1].args else 0)
    return max(heights) + isinstance(tree, factorial)


def _digits(tree: Any) -> int | None:
    """Bound the digits that the constants of a tree may need; None if there is no safe bound."""
    if tree.is_Number:
        bits = int(tree.p).bit_length() + int(tree.q).bit_length() if tree.is_Rational else None
        return None if bits is None else 1 + bits * 3 // 10
    inner = [_digits(part) for part in tree.args]
    if None in inner:
        return None
    total = sum(digits for digits in inner if digits is not None)
    if isinstance(tree, Pow) and all(part.is_zero for part in tree.args):
        return None
    if isinstance(tree, Pow | factorial | binomial) and not tree.args[-1].free_symbols:
        if total > 12:  # a tower, or a number that no power should have
            exponent_digits = _digits(tree.args[-1])
            if exponent_digits is None or exponent_digits > 6:
                return None
        size = abs(tree.args[-1].evalf(15))
        if (not size.is_Float and not size.is_Integer) or size > _MAX_DIGITS:
            return None
        base = _digits(tree.args[0]) or 1
        return int(size + 1) * base + total
    return total


def _precision(*expressions: Expression) -> int:
    return 50 + 2 * max(expression.digits for expression in expressions)


def _values(*expressions: Expression) -> list[tuple[Any, ...]]:
    """Compute the values of expressions at some points; none where there are too few to tell."""
    precision = _precision(*expressions)
    names = sorted({s for each in expressions for s in each.tree.free_symbols}, key=str)
    found = []
    for point in range(_POINTS if names else 1):
        places = {name: _coordinate(point, str(name)) for name in names}
        values = tuple(
            each.tree.xreplace(places).evalf(precision, maxn=4 * precision) for each in expressions
        )
        if all(value.is_number and value.is_finite for value in values):
            found.append(values)
    return found if len(found) >= (_POINTS // 2 if names else 1) else []


def _coordinate(point: int, name: str) -> Any:
    """Draw a number of three digits; exact, so that sympy knows how many digits are right."""
    size = random.Random(f"{point} {name}").randint(301, 2699)
    return Rational(size if point % 2 else -size, 1000)


def _is_same(x: Any, y: Any, precision: int) -> bool:
    return bool(abs(x - y) <= Float(10) ** -(precision // 2) * max(abs(x), abs(y)))
