r"""What an answer is: a number, a time, a list, an interval, an equation ...

`read` takes canonical text apart as far as its meaning is certain; the rest is compared letter by
letter.
"""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache

from alignctl.rewards.equality import is_equal
from alignctl.rewards.expressions import Expression, difference, read_expression
from alignctl.rewards.kinds import (
    SET,
    Assignment,
    Choice,
    Group,
    Literal,
    Matrix,
    Ratio,
    Reading,
    Region,
    Relation,
    Union,
    Words,
)
from alignctl.rewards.quantities import Quantity, read_based, read_clock, read_quantity
from alignctl.rewards.units import read_unit

_OPEN, _CLOSE = "([{", ")]}"
_WORD = r"[^\W\d_]"
_CHOICE = re.compile(
    r"(?:(?:[Oo]ption|[Cc]hoice) )?(?:\(([A-Z])\)|([A-Z])(?=[.):]|$))[.):]?\s*(.*)"
)
_SIGNS = re.compile(r"\\(?:le|ge|ne|approx|in)(?![A-Za-z])|(?<![\\<>!])=|<|>")
_NAME = re.compile(
    r"(?:\\(?:angle|triangle|overline|text)\s?\{?)?\s?\\?[A-Za-z]+(?: [A-Za-z]+){0,3}\}?"
    r"(?:_\{?\w{1,3}\}?)?'?(?:\((?:[A-Za-z]|-?\d+)(?:,\s?[A-Za-z])*\))?"
    r"|\\frac\{d[A-Za-z]?\}\{d[A-Za-z]\}"
    r"|\([A-Za-z](?:,\s?[A-Za-z])+\)"
)
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
_INFINITIES = {r"\infty": 1, r"+\infty": 1, r"-\infty": -1}


@lru_cache(maxsize=64)
def read(text: str) -> Reading | None:
    """Read canonical text; None when there is nothing in it."""
    if not re.search(r"\w", text) and text not in (r"\{\}", r"\{ \}"):
        return None
    readers: tuple[Callable[[str], Reading | None], ...] = (
        _choice,
        read_clock,
        read_based,
        read_quantity,
        _words,
        _several,
        _matrix,
        _read_bracketed,
        _read_relation,
        _ratio,
        _value,
    )
    found = next((found for reader in readers if (found := reader(text)) is not None), None)
    return Literal(_letters(text)) if found is None else found


def _choice(text: str) -> Choice | None:
    match = _CHOICE.fullmatch(text)
    if match is None or re.search(r"\([A-Z]\)|\bor\b|\band\b|^,|=", match[3]):
        return None
    if match[2] and re.match(r"[A-Z]\)?:\s?\d", text):  # A:1 may be a ratio
        return None
    return Choice(match[1] or match[2], _letters(match[3]))


def _words(text: str) -> Words | Literal | None:
    if not re.fullmatch(rf"\(?{_WORD}{{2,}}(?:[ '-]+{_WORD}+)*\.?\)?", text):
        return None
    if _split(text, r"\b(?:and|or)\b"):
        return None
    return Words(re.sub(r"^(?:the|an?) ", "", text.strip("().").lower()))


def _several(text: str) -> Reading | None:
    """Read a list without brackets, or what stands for several values: +-."""
    if re.search(r"\\ldots|\.\.\.", text):
        return Literal(_letters(text))
    is_apart = re.search(r"\d,\d{3}(?!\d).*, ", text)  # 1,000, 2,000
    comma = r", |;" if is_apart else "[,;]"
    pieces = _split(text, r",\s?(?:and|or)\b|\b(?:and|or)\b|" + comma)
    if pieces:
        return _list_of(pieces, is_either=re.search(r"\bor\b", text) is not None)
    united = _split(text, r"\\cup(?![A-Za-z])")
    if united:
        parts = [read(piece) for piece in united]
        return Union(tuple(part for part in parts if part)) if all(parts) else None
    if re.search(r"\\[pm]{2}(?![A-Za-z])", text) and not _SIGNS.search(text):
        signs = [text, text]
        signs[0] = re.sub(r"\\mp(?![A-Za-z])", "-", re.sub(r"\\pm(?![A-Za-z])", "+", text))
        signs[1] = re.sub(r"\\mp(?![A-Za-z])", "+", re.sub(r"\\pm(?![A-Za-z])", "-", text))
        values = [read(each.strip().removeprefix("+").strip()) for each in signs]
        if all(_is_value(value) for value in values):
            return Group("", tuple(value for value in values if value))
    return None


def _list_of(pieces: Sequence[str], *, is_either: bool) -> Reading | None:
    items = [read(piece.strip()) for piece in pieces]
    found = [item for item in items if item is not None]
    if len(found) != len(items):
        return Literal(_letters(", ".join(pieces)))
    regions = [item for item in found if isinstance(item, Region)]
    if regions:
        if not is_either or len(regions) < len(found) or len({r.name for r in regions}) > 1:
            return Literal(_letters(", ".join(pieces)))
        return Region(regions[0].name, Union(tuple(region.values for region in regions)))
    names = [item.name for item in found if isinstance(item, Assignment)]
    is_one_name = len({*names}) == 1 and len(names) in (1, len(found))
    if is_one_name and isinstance(found[0], Assignment):  # x = 1, x = 2, or x = 1, 2
        values = [item.value if isinstance(item, Assignment) else item for item in found]
        return Assignment(names[0], Group("", tuple(values)))
    return Group("", tuple(found))


def _read_bracketed(text: str) -> Reading | None:
    """Read a set, a tuple, an interval, or a value in brackets that mean nothing."""
    text = text.removesuffix(".").strip()
    if text in (r"\{\}", r"\{ \}", r"\emptyset"):
        return Group(SET, ())
    for opening, closing in (
        (r"\{", r"\}"),
        (r"\langle", r"\rangle"),
        ("(", ")"),
        ("(", "]"),
        ("[", "]"),
        ("[", ")"),
    ):
        if text.startswith(opening) and text.endswith(closing):
            inner = text[len(opening) : -len(closing)].strip()
            if not _is_closed(inner):
                return None
            return _inside(inner, opening + closing)
    return None


def _inside(inner: str, brackets: str) -> Reading | None:
    pieces = _split(inner, "[,;]") or [inner]
    if brackets == SET and len(pieces) == 1 and (re.search(r"[|:]", inner) or not inner):
        return Literal(_letters(inner))
    if len(pieces) == 1:
        found = _thousands_apart(inner, brackets)
        if found is not None:
            return found
        if brackets == "()":
            return read(inner)
    items = [_end(piece.strip()) for piece in pieces]
    if not all(items) or (len(items) == 1 and brackets != SET):
        return None
    return Group(brackets, tuple(item for item in items if item))


def _thousands_apart(inner: str, brackets: str) -> Reading | None:
    """Read `(1,234)` as two numbers, and not as one."""
    numbers = re.fullmatch(r"(-?\d{1,3}),(\d{3})", inner)
    if numbers is None:
        return None
    return Group(brackets, tuple(Quantity(Fraction(int(each))) for each in numbers.groups()))


def _end(text: str) -> Reading | None:
    """Read an item, which may also be an infinity."""
    return Literal(text.removeprefix("+")) if text in _INFINITIES else read(text)


def _matrix(text: str) -> Reading | None:
    match = re.fullmatch(
        r"(?:[(\[]\s?)?\\begin\s?\{([pb]?matrix|array)\}\s?(?:\{[clr| ]*\})?(.*)\\end\s?\{\1\}"
        r"(?:\s?[)\]])?",
        text,
    )
    if match is None:
        return None
    if match[1] in ("matrix", "array") and not (text[0] in "([" and text[-1] in ")]"):
        return None
    lines = [line for line in re.split(r"\\\\", match[2]) if line.strip()]
    rows = [[read(cell.strip()) for cell in line.split("&")] for line in lines]
    if not rows or not all(all(row) for row in rows):
        return None
    return Matrix(tuple(tuple(cell for cell in row if cell) for row in rows))


def _read_relation(text: str) -> Reading | None:
    """Read an equation, an inequality, or an approximate value."""
    if text.startswith(r"\approx"):
        return read(text.removeprefix(r"\approx").strip())
    signs = [match[0] for match in _SIGNS.finditer(text)]
    parts = [part.strip() for part in _SIGNS.split(text)]
    if not signs:
        return None
    if not all(parts) or r"\ne" in signs:
        return Literal(_letters(text))
    if {*signs} <= {"=", r"\approx"}:
        return _equation(parts)
    if signs == [r"\in"]:
        values = read(parts[1])
        if not isinstance(values, Group | Union):
            return Literal(_letters(text))
        if isinstance(values, Group) and values.brackets == SET:
            return Assignment(_letters(parts[0]), Group("", values.items))
        return Region(_letters(parts[0]), values)
    return _inequality(parts, signs) or Literal(_letters(text))


def _equation(parts: Sequence[str]) -> Reading | None:
    *names, last = parts
    if len(parts) == 2 and _NAME.fullmatch(last) and not _NAME.fullmatch(parts[0]):
        names, last = [last], parts[0]  # 5 = x
    value = read(last)
    if value is None:
        return None
    others = [read(part) for part in names]
    if _NAME.fullmatch(names[0]) and not isinstance(read_quantity(names[0]), Quantity):
        if all(other is not None and is_equal(value, other) for other in others[1:]):
            return Assignment(_letters(names[0]), value)
        return Literal(_letters("=".join(parts)))
    if all(other is not None and _is_constant(other) for other in [*others, value]):
        is_true = all(other is not None and is_equal(value, other) for other in others)
        return value if is_true else Literal(_letters("=".join(parts)))
    if len(parts) == 2:
        left, right = read_expression(parts[0]), read_expression(last)
        if left and right:
            return Relation("=", difference(left, right))
    return Literal(_letters("=".join(parts)))


def _is_value(value: Reading | None) -> bool:
    return isinstance(value, Quantity | Expression)


def _is_constant(value: Reading) -> bool:
    return isinstance(value, Quantity) or (
        isinstance(value, Expression) and not value.tree.free_symbols
    )


def _inequality(parts: Sequence[str], signs: Sequence[str]) -> Reading | None:
    r"""Read `x < 2` and `1 < x \le 2` as regions, other inequalities as relations."""
    if not {*signs} <= {*_FLIPPED}:
        return None
    if len(parts) == 2:
        if _is_unknown(parts[1]):
            parts, signs = parts[::-1], [_FLIPPED[signs[0]]]
        bound = _end(parts[1])
        if _is_unknown(parts[0]) and bound is not None and _is_constant(bound):
            if signs[0] in (">", r"\ge"):
                brackets = ("(" if signs[0] == ">" else "[") + ")"
                return Region(parts[0], Group(brackets, (bound, Literal(r"\infty"))))
            brackets = "(" + (")" if signs[0] == "<" else "]")
            return Region(parts[0], Group(brackets, (Literal(r"-\infty"), bound)))
        left, right = read_expression(parts[0]), read_expression(parts[1])
        if left is None or right is None:
            return None
        if signs[0] in (">", r"\ge"):
            left, right = right, left
        return Relation("<" if signs[0] in ("<", ">") else r"\le", difference(left, right))
    if len(parts) == 3 and _is_unknown(parts[1]):
        if signs[0] in (">", r"\ge"):
            parts, signs = parts[::-1], [_FLIPPED[sign] for sign in signs[::-1]]
        if not {*signs} <= {"<", r"\le"}:
            return None
        ends = _end(parts[0]), _end(parts[2])
        if ends[0] is None or ends[1] is None:
            return None
        brackets = ("(" if signs[0] == "<" else "[") + (")" if signs[1] == "<" else "]")
        return Region(parts[1], Group(brackets, (ends[0], ends[1])))
    return None


def _is_unknown(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z](?:_\{?\w{1,3}\}?)?|\\[a-z]+|\|[A-Za-z]\|", text) is not None


def _ratio(text: str) -> Reading | None:
    pieces = _split(text, ":") or _split(text, r"\bto\b")
    if not pieces:
        return None
    parts = [read_quantity(piece.strip()) or read_expression(piece.strip()) for piece in pieces]
    if not all(parts):
        return None
    return Ratio(tuple(part for part in parts if part))


def _value(text: str) -> Reading | None:
    """Read an expression, with or without a unit behind it; one letter is a factor."""
    with_unit = re.fullmatch(
        r"(.*[\d})!]|.*\\pi) ?([A-Za-z\u00b0][A-Za-z\u00b0 /]+(?:\^[23])?|\u00b0)", text
    )
    is_angle = re.search(r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)", text) is not None
    if with_unit and not is_angle and read_unit(with_unit[2], is_apart=True):
        return read_expression(with_unit[1].strip())
    return read_expression(text)


def _split(text: str, separator: str) -> list[str]:
    """Split a text at separators outside of all brackets; no pieces if there is no separator."""
    if separator.startswith((",", "[")) and re.fullmatch(r"-?[\d ,]*\d,\d{3}(?:\.\d+)?", text):
        numbers = re.split(r",", text)
        if len(numbers) == 2 and len(numbers[0].lstrip("-")) <= 3 and " " not in text:
            return []
    pieces, start = [], 0
    for match in re.finditer(separator, text):
        if _is_closed(text[: match.start()]):
            pieces.append(text[start : match.start()])
            start = match.end()
    return [*pieces, text[start:]] if pieces else []


def _is_closed(text: str) -> bool:
    """Tell whether all brackets of a text are closed, and none is closed before it is open."""
    depth = 0
    for character in text:
        if character in _OPEN:
            depth += 1
        elif character in _CLOSE:
            depth -= 1
        if depth < 0:
            return False
    return depth == 0


def _letters(text: str) -> str:
    """Remove the spaces of a text, and write its words, not its single letters, in lower case."""
    text = re.sub(rf"{_WORD}{{3,}}", lambda match: match[0].lower(), text)
    return re.sub(r"\s+", "", text)
