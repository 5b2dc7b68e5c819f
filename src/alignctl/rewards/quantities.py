"""Plain numbers, with their units, times of day and numbers in other bases, compared exactly.

All of them are read from canonical text (`alignctl.rewards.notation`). What could be read in two
ways is not read: `5m` may be a length or a product, `5 dozen` five or sixty.
"""

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from alignctl.rewards.units import read_unit, singular, size_of

TOLERANCE = Fraction(1, 10_000)
"""How far a rounded number may be from the exact one: relative to it, and absolutely. The first is
ChatLearn's; without the second, prices of some thousands would equal their neighbours."""

_MIN_DIGITS = 4
"""A rounded number equals the exact one from so many digits on: 0.3333 is 1/3, 0.33 is not."""

_MAX_EXPONENT = 400

NUMBER = r"(?:[1-9]\d{0,2}(?:,\d{3})+(?![,\d])|\d+)(?:\.\d+)?|\.\d+"
"""A number without a sign, as a pattern."""

_SIGN = r"[-+]?\s?"
_CURRENCY = (
    r"(?P<currency>US\s?\$|USD|EUR|GBP|INR|Rs\.?|[$\u20ac\u00a3\u00a5\u20b9])\s?(?P<inner>-?)"
)
_QUANTITY = re.compile(
    rf"(?P<sign>{_SIGN})(?:{_CURRENCY})?"
    r"(?:(?P<whole>\d+)(?:\s+(?:and\s+)?(?=\d+\s?/)|\s?(?=\\frac)))?"
    rf"(?:\\frac\{{(?P<over>-?\s?(?:{NUMBER}))\}}\{{(?P<under>-?\s?(?:{NUMBER}))\}}"
    rf"|(?P<number>[1-9]\d{{0,2}}(?: \d{{3}})+(?![\d/ ]*[\d/])|\d*\.(?=\\overline)|{NUMBER})"
    r"(?P<repeating>\\overline\{\d+\})?"
    r"(?:[eE](?P<exponent>[-+]?\d{1,9}))?"
    r"(?:\s?(?:\\times|\\cdot|\*|x)\s?10\s?\^\s?(?:\{?\s?(?P<power>[-+]?\d{1,9})\s?\}?))?"
    rf"(?:\s?/\s?(?P<divisor>{NUMBER})(?!\s?/))?)"
    r"(?P<half> and a half)?"
    r"(?P<rest>.*)"
)
_POWER_OF_TEN = re.compile(rf"({_SIGN})10\^(?:\{{([-+]?\d{{1,9}})\}}|(\d))")
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_SCALES["trillion"] = 10**12
_SYMBOLS = {
    "$": "dollar",
    "US$": "dollar",
    "USD": "dollar",
    "\u20ac": "euro",
    "EUR": "euro",
    "\u00a3": "gbp",
    "GBP": "gbp",
    "\u00a5": "yen",
    "\u20b9": "rupee",
    "INR": "rupee",
    "Rs": "rupee",
}
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen "
    "fourteen fifteen sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMBER_WORDS = {word: value for value, word in enumerate(_SMALL.split())}
_NUMBER_WORDS |= {word: 10 * value for value, word in enumerate(_TENS.split(), 2)}
_PARTS = {"half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6}
_PARTS |= {"seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10}


@dataclass(frozen=True)
class Quantity:
    """A plain number.

    Attributes:
        value: The number as it is written: 50 for "50 %".
        places: Decimals that are written; None for a fraction or an integer.
        unit: "" for none, "%", or what stands after the number in the singular.
    """

    value: Fraction
    places: int | None = None
    unit: str = ""


@dataclass(frozen=True)
class Clock:
    """A time of day, or a duration in hours and minutes.

    Attributes:
        hour: As it is written.
        minute: From 0 to 59.
        second: From 0 to 59.
        half: "am", "pm" or "".
    """

    hour: int
    minute: int
    second: int
    half: str


@dataclass(frozen=True)
class Based:
    """A whole number in a base other than ten.

    Attributes:
        value: What it is worth.
        base: From 2 to 36.
    """

    value: int
    base: int


def read_quantity(text: str) -> Quantity | None:
    """Read canonical text that is one number, with or without a unit; None for any other."""
    if match := _POWER_OF_TEN.fullmatch(text):
        power = int(match[2] or match[3])
        if abs(power) > _MAX_EXPONENT:
            return None
        return Quantity(Fraction(10) ** power * (-1 if match[1].startswith("-") else 1))
    match = _QUANTITY.fullmatch(text)
    if match is None:
        return _read_words(text)
    if match["over"] is not None:
        value, places = _fraction(match["over"]), None
        divisor = _fraction(match["under"])
    else:
        value, places = _decimal(match["number"], match["repeating"])
        power = int(match["exponent"] or 0) + int(match["power"] or 0)
        if abs(power) > _MAX_EXPONENT:
            return None
        if power:
            value, places = value * Fraction(10) ** power, None
        divisor = _fraction(match["divisor"] or "1")
    if not divisor or (match["whole"] and (value < 0 or divisor < 0)):
        return None
    if divisor != 1:
        value, places = value / divisor, None
    if match["whole"]:
        value += int(match["whole"])
    if match["half"]:
        value, places = value + Fraction(1, 2), None
    if match["sign"].startswith("-") != bool(match["inner"]):
        value = -value
    return _add_unit(Quantity(value, places), match["currency"], match["rest"])


def _add_unit(number: Quantity, currency: str | None, rest: str) -> Quantity | None:
    scale = re.match(r"\s?(hundred|thousand|million|billion|trillion)(?![A-Za-z])", rest)
    if scale:
        number = Quantity(number.value * _SCALES[scale[1]])
        rest = rest[scale.end() :]
    if behind := re.match(r"\s?([$\u20ac\u00a3\u00a5\u20b9])$", rest):  # 18$
        currency, rest = currency or behind[1], ""
    is_apart = rest.startswith((" ", "-")) or scale is not None
    rest = re.sub(r"^-(?=[A-Za-z])", "", rest.strip(" ."))
    if currency:
        symbol = _SYMBOLS[currency.rstrip(".").replace(" ", "")]
        named = not rest or singular(rest.split()[0]) == symbol or rest.startswith(("per ", "/"))
        is_known = named or (is_apart and read_unit(rest, is_apart=True) is not None)
        is_short = len(rest) <= 2 and bool(rest)  # $5K, $5m: which scale that is, is a guess
        return replace(number, unit=symbol) if is_known and not is_short else None
    unit = read_unit(rest, is_apart=is_apart)
    return None if unit is None else replace(number, unit=unit)


def _read_words(text: str) -> Quantity | None:
    """Read a number that is written in words, such as "twenty-one" or "two thirds"."""
    if text.lower().startswith(("negative ", "minus ")):
        found = _read_words(text.partition(" ")[2])
        return None if found is None else Quantity(-found.value)
    words = re.findall(r"[a-z]+", text.lower())
    if not words or not re.fullmatch(r"[A-Za-z -]+", text):
        return None
    parts = _PARTS.get(words[-1]) or _PARTS.get(words[-1].removesuffix("s"))
    if parts and len(words) <= 2:
        count = _NUMBER_WORDS.get(words[0]) if len(words) == 2 and words[0] != "a" else 1
        return None if count is None else Quantity(Fraction(count, parts))
    total = group = 0
    for place, word in enumerate(words):
        if word in _NUMBER_WORDS:
            value = _NUMBER_WORDS[word]
            if place and not (group % 100 == 0 or (group % 100 >= 20 and 0 < value < 10)):
                return None
            group += value
        elif word == "hundred" and 0 < group < 10:
            group *= 100
        elif word in ("thousand", "million") and group:
            total, group = total + group * _SCALES[word], 0
        elif place and place == len(words) - 1 and read_unit(word, is_apart=True):
            return Quantity(Fraction(total + group), unit=singular(word))
        elif word != "and" or not place or place == len(words) - 1:
            return None
    return Quantity(Fraction(total + group))


def _fraction(number: str) -> Fraction:
    return Fraction(re.sub(r"[, ]", "", number))


def _decimal(number: str, repeating: str | None) -> tuple[Fraction, int | None]:
    """Compute the value of a decimal, and count its decimal places."""
    _, point, decimals = number.partition(".")
    value, places = _fraction(number.rstrip(".") or "0"), len(decimals) if point else None
    if repeating is None:
        return value, places
    digits = re.sub(r"\D", "", repeating)
    period = Fraction(int(digits), 10 ** len(digits) - 1)
    return value + period / 10 ** len(decimals), None


def is_same_quantity(expected: Quantity, answer: Quantity) -> bool:
    """Tell whether two numbers are equal, as far as both say their units.

    A missing unit is taken for the other's. A percentage equals its hundredth; without its sign it
    is the same only above 1, where it cannot be meant for a share.
    """
    if "%" in (expected.unit, answer.unit) and expected.unit != answer.unit:
        if expected.unit and answer.unit:
            return False
        is_dropped = max(abs(expected.value), abs(answer.value)) > 1
        whole = _hundredth(expected), _hundredth(answer)
        return is_close(*whole) or (is_dropped and is_close(expected, answer))
    if not expected.unit or not answer.unit or expected.unit == answer.unit:
        return is_close(expected, answer)
    sizes = size_of(expected.unit), size_of(answer.unit)
    if sizes[0] is None or sizes[1] is None:
        names = [{*unit.split()} for unit in (expected.unit, answer.unit)]
        is_same_noun = (names[0] <= names[1] or names[1] <= names[0]) and not any(sizes)
        return is_same_noun and is_close(expected, answer)
    if sizes[0][0] != sizes[1][0]:
        return False
    if sizes[0][1] == sizes[1][1]:
        return is_close(expected, answer)
    return expected.value * sizes[0][1] == answer.value * sizes[1][1]


def _hundredth(number: Quantity) -> Quantity:
    if number.unit != "%":
        return number
    return Quantity(number.value / 100, None if number.places is None else number.places + 2)


def is_close(expected: Quantity, answer: Quantity) -> bool:
    """Tell whether two numbers are equal, or one is the other, rounded or cut off."""
    if expected.value == answer.value:
        return True
    pairs = ((expected, answer), (answer, expected))
    return any(
        rounded.places
        and (exact.places is None or exact.places > rounded.places)
        and exact.value.denominator > 1
        and is_rounded(rounded, exact.value)
        for rounded, exact in pairs
    )


def is_rounded(rounded: Quantity, exact: Fraction) -> bool:
    """Tell whether a decimal is what an exact number is when it is rounded or cut off."""
    scale = 10 ** (rounded.places or 0)
    shown, wanted = abs(rounded.value) * scale, abs(exact) * scale
    return (
        (rounded.value < 0) == (exact < 0)
        and shown >= 10 ** (_MIN_DIGITS - 1)
        and shown in (int(wanted), int(wanted + Fraction(1, 2)))
        and abs(rounded.value - exact) <= TOLERANCE * min(Fraction(1), abs(exact))
    )


def read_clock(text: str) -> Clock | None:
    """Read a time from canonical text; None for any other."""
    text = {"noon": "12:00 pm", "midnight": "12:00 am"}.get(text.lower(), text)
    match = re.fullmatch(r"(\d{1,2})\s?:\s?([0-5]\d)(?:\s?:\s?([0-5]\d))?(?:\s?([ap]m))?", text)
    if match is None:
        match = re.fullmatch(r"(\d{1,2})()()\s([ap]m)", text)
    if match is None:
        return None
    hour, half = int(match[1]), match[4] or ""
    if half and not 1 <= hour <= 12:
        return None
    return Clock(hour, int(match[2] or 0), int(match[3] or 0), half)


def is_same_time(expected: Clock, answer: Clock) -> bool:
    """Tell whether two times are the same; an answer must say am or pm if the reference does."""
    if (expected.minute, expected.second) != (answer.minute, answer.second):
        return False
    if expected.half and not answer.half and 1 <= answer.hour <= 12:
        return False
    if not expected.half:
        return expected.hour == answer.hour
    return _hour_of_day(expected) == _hour_of_day(answer)


def _hour_of_day(time: Clock) -> int:
    return time.hour % 12 + 12 * (time.half == "pm") if time.half else time.hour


_BASE_NAMES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8}
_BASE_NAMES |= {"nine": 9, "ten": 10, "twelve": 12, "sixteen": 16}


def read_based(text: str) -> Based | Quantity | None:
    """Read a number with its base from canonical text; in base ten, it is a plain one."""
    match = re.fullmatch(r"\(?([0-9A-Za-z]+)\)?\s?_\s?\{?\s?(\d{1,2}|[a-z]+)\s?\}?", text)
    if match is None:
        match = re.fullmatch(r"([0-9A-Za-z]+),? \(?(?:in )?base[ -]\{?(\d{1,2}|[a-z]+)\}?\)?", text)
    if match is None:
        return None
    base = _BASE_NAMES.get(match[2]) or (int(match[2]) if match[2].isdigit() else 0)
    highest = max(int(digit, 36) for digit in match[1])
    if not highest < base <= 36:
        return None
    value = int(match[1], base)
    return Quantity(Fraction(value)) if base == 10 else Based(value, base)
