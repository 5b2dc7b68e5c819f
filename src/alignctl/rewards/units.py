"""What stands after a number: units that measure, and things that are counted."""

import re
from fractions import Fraction

_MEASURES: dict[str, dict[str, str]] = {
    "length": {
        "mm millimeter millimetre": "1",
        "cm centimeter centimetre": "10",
        "dm decimeter": "100",
        "m meter metre": "1000",
        "km kilometer kilometre": "1000000",
        "in inch inche": "25.4",
        "ft foot feet": "304.8",
        "yd yard": "914.4",
        "mi mile": "1609344",
    },
    "mass": {
        "mg milligram": "1",
        "g gram": "1000",
        "kg kilogram": "1000000",
        "tonne": "1000000000",
    },
    "weight": {"oz ounce": "1", "lb pound": "16"},
    "time": {
        "ms millisecond": "1",
        "s sec second": "1000",
        "min minute": "60000",
        "h hr hour": "3600000",
        "day": "86400000",
        "week": "604800000",
    },
    "months": {"month": "1", "yr year": "12"},
    "volume": {"ml mL milliliter millilitre": "1", "cl": "10", "l L liter litre": "1000"},
    "liquid": {"cup": "1", "pint": "2", "qt quart": "4", "gal gallon": "16"},
    "angle": {"\u00b0 degree deg": "1"},
    "turn": {"rad radian": "1"},
    "dollars": {"cent \u00a2 penny pennie": "1", "dollar buck USD": "100"},
    "speed": {"mph": "1"},
    "ordinal": {"th st nd rd": "1"},
}
_UNITS = {
    name: (measure, Fraction(size))
    for measure, sizes in _MEASURES.items()
    for names, size in sizes.items()
    for name in names.split()
}
"""What a unit measures, and how many of the smallest unit of its kind it is."""

# Words after a number that change it, or say that it is not alone.
_NO_UNIT = re.compile(
    r"pi|sqrt|sin|cos|tan|log|ln|exp|or|and|mod|modulo|choose|squared|cubed|factorial|plus"
    r"|minus|less|more|over|under|root|below|above|negative|not|never|but|to|than|versus|vs"
    r"|remainder|hundredth|tenth|thousandth|millionth|half|halve|third|fourth|quarter|fifth"
    r"|sixth|seventh|eighth|ninth|twelfth|dozen|hundred|thousand|million|billion|trillion|maybe"
    r"|perhaps|possibly|either|neither|times|base|point|percentage|permille|of|out|off|least"
    r"|most"
)
_SHORT_NOUNS = re.compile(
    r"day|egg|car|man|men|cat|dog|box|toy|pen|pie|bag|cup|hat|bus|job|cow|pig|hen|fan|kid|boy"
    r"|ant|bee|bar|can|jar|bed|row|tin|ton|age"
)
_LINKS = re.compile(r"a|an|the|in|on|at|by|for|per|each|all|her|his|its|she|he|it|has|had|new|old")


def read_unit(text: str, *, is_apart: bool) -> str | None:
    """Read what stands after a number; None where it is no unit.

    Args:
        text: Without space around it.
        is_apart: Whether a space is before it: one letter is a unit, and not a factor, only then.
    """
    if not text:
        return ""
    if percent := re.match(r"(?:%|per\s?cent(?![A-Za-z])|pct(?![A-Za-z]))\s*", text):
        rest = text[percent.end() :]
        return "%" if not rest or (re.fullmatch(r"[A-Za-z ]+", rest) and _is_noun(rest)) else None
    text = re.sub(r"^\^\s?\{?\s?(th|st|nd|rd)\s?\}?$", r"\1", text)
    text, power = re.subn(r"\s?\^\s?\{?([23])\}?$", r"^\1", text)
    if re.fullmatch(r"\u00b0\s?[CF]", text):
        return text.replace(" ", "")
    if not re.fullmatch(r"[A-Za-z\u00b0\u00a2][A-Za-z\u00b0.'/ -]*(?:\^[23])?", text):
        return None
    stem = text.removesuffix("^2").removesuffix("^3")
    words = [singular(word) for word in re.findall(r"[A-Za-z]+|[\u00b0\u00a2]|/", stem)]
    prefix = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}.get(words[0])
    if prefix and len(words) > 1:
        words, power = words[1:], power + 1
    known = [word in _UNITS for word in words]
    if not all(
        (word in _UNITS and (is_apart or len(word) > 1 or not word.isalpha()))
        or word == "/"
        or _is_noun(word)
        for word in words
    ) or (not is_apart and not any(known)):
        return None
    suffix = prefix or (text[-2:] if power else "")
    return " ".join(words) + suffix


def _is_noun(text: str) -> bool:
    words = text.lower().split()
    return all(
        not _NO_UNIT.fullmatch(singular(word))
        and (len(word) > 3 or _SHORT_NOUNS.fullmatch(word) or _LINKS.fullmatch(word))
        for word in words
    )


def singular(word: str) -> str:
    """Return a word without the s of the plural."""
    if word in _UNITS:
        return word
    lower = word.lower()
    return lower[:-1] if lower.endswith("s") and len(lower) > 2 else lower


def size_of(unit: str) -> tuple[str, Fraction] | None:
    """Return what a unit measures, and its size; None for things that are counted."""
    name, _, power = unit.partition("^")
    if name not in _UNITS:
        return None
    dimension, size = _UNITS[name]
    return dimension + power, size ** int(power or 1)
