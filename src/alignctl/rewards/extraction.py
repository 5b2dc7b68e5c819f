r"""The final answer in what a model wrote, as text, and plain numbers out of such texts.

Where an answer stands, the first that is there: the last `\boxed{...}` whose braces are closed; the
last `#### ...`; the last sentence "the answer is ..."; the last number. Every search is linear in
the text, and no answer is longer than 300 characters: garbage costs nothing.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARACTERS = 300
"""Longest text that is taken for an answer; exact arithmetic on so few digits is instant."""

_DASHES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d", "-"))
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?![,\d])|\d+)(?:\.\d+)?|\.\d+"
_CURRENCY = r"(?:US\s?|USD\s?|EUR\s?|GBP\s?|Rs\.?\s?)?[$\u20ac\u00a3\u00a5\u20b9]?\s?"
_AMOUNT = (
    rf"(?:(?P<whole>\d+)(?:\s+|\s*-\s+)(?=\d+\s*/))?(?P<number>{_NUMBER})"
    rf"(?:\s*/\s*(?P<divisor>{_NUMBER}))?"
    r"(?:\s*(?P<percent>%|per\s?cent\b))?(?:\s*(?P<scale>thousand|million|billion)\b)?"
)
_QUANTITY = re.compile(
    rf"(?P<sign>[-+]?)\s*{_CURRENCY}(?P<inner>[-+]?)(?:{_AMOUNT})\.?\s*-?(?P<unit>[A-Za-z\u00b0].*)?",
    re.IGNORECASE,
)
# A number inside words (H2O) is none, and a minus after an operand is an operator.
_LAST = re.compile(
    rf"(?:(?<![\w).])[-+]\s?)?{_CURRENCY}(?<![A-Za-z_.])(?<!\d)(?:{_AMOUNT})", re.IGNORECASE
)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_STATED = re.compile(r"\banswer\s*(?:is|are|:)[\s:*]*", re.IGNORECASE)
_CALCULATION = re.compile(r"<<[^<>\n]*>>")  # GSM8K's notes for a calculator: 48/2 = <<48/2=24>>24
_SENTENCE_END = re.compile(r"[.!?;](?:\s|\Z)")
_ASSIGNMENT = re.compile(r"[A-Za-z]\w{0,20}\s*(?:=|\\approx)\s*")
_FRACTION = re.compile(rf"\\frac\s*\{{\s*({_NUMBER})\s*\}}\s*\{{\s*({_NUMBER})\s*\}}")
_WORDS = re.compile(r"[A-Za-z\u00b0][A-Za-z\u00b0.'/ -]*(?:\^?[23\u00b2\u00b3])?")
# Letters after a number that are units; others (5x, 2i) are unknowns or constants.
_LETTERS = frozenset("mgshlJWVNKCFALd")
_OPERATIONS = frozenset({"pi", "sqrt", "sin", "cos", "tan", "log", "ln", "exp", "or", "and", "mod"})


@dataclass(frozen=True)
class Quantity:
    """A plain number.

    Attributes:
        value: The number as it is written: 50 for "50 %".
        is_percent: Whether it is followed by a percent sign.
    """

    value: Fraction
    is_percent: bool


def final_answer(completion: str) -> str | None:
    """The answer that a completion ends with, cleaned; None when there is none."""
    text = _CALCULATION.sub("", completion.translate(_DASHES))
    for find in (boxed_answer, _marked, _stated, _last_number):
        found = find(text)
        if found is not None and (answer := clean(found)):
            return answer
    return None


def clean(text: str) -> str:
    """An answer without what surrounds it: delimiters, spacing, type styles, the full stop."""
    text = text.translate(_DASHES).strip()[:MAX_CHARACTERS]
    text = re.sub(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", r" \1", text)
    text = re.sub(r"\\[dtc]frac\b", r"\\frac", text)
    text = re.sub(
        r"\\(?:left|right)(?![A-Za-z])|\\[()\[\]!,;: ]|\\?\$|[`~]|\*\*(?!\s*\d)", "", text
    )
    text = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree", "\u00b0", text)
    text = text.replace("{,}", ",").replace("\\%", "%")
    text = re.sub(r"\s+", " ", text).strip(" ,:;!?*").rstrip(" .,:;!?*")
    return text if re.match(r"\.\d", text) else text.lstrip(". ")


def quantity(answer: str) -> Quantity | None:
    """A cleaned answer that is one number, with or without a unit; None for any other."""
    text = _ASSIGNMENT.sub("", answer, count=1) if _ASSIGNMENT.match(answer) else answer
    text = _FRACTION.sub(r" \1/\2", text).strip()
    match = _QUANTITY.fullmatch(text)
    if match is None or not _is_unit(match["unit"]):
        return None
    value = _fraction(match["number"])
    if match["divisor"]:
        divisor = _fraction(match["divisor"])
        if not divisor:
            return None
        value /= divisor
    value = (value + int(match["whole"] or 0)) * _SCALES.get((match["scale"] or "").lower(), 1)
    is_negative = (match["sign"] == "-") != (match["inner"] == "-")
    return Quantity(-value if is_negative else value, bool(match["percent"]))


def is_words(answer: str) -> bool:
    """Whether a cleaned answer is a word or more, which algebra would take for a product."""
    return re.fullmatch(r"\(?[A-Za-z][A-Za-z' -]+\)?|\(?[A-Z]\)?", answer) is not None


def _fraction(number: str) -> Fraction:
    return Fraction(number.replace(",", ""))


def _is_unit(unit: str | None) -> bool:
    if unit is None:
        return True
    if not _WORDS.fullmatch(unit.strip()):
        return False
    words = re.findall(r"[A-Za-z]+", unit)
    return all(
        word in _LETTERS if len(word) == 1 else word.lower() not in _OPERATIONS
        for word in (words if len(words) == 1 else [w for w in words if len(w) > 1])
    )


def boxed_answer(text: str) -> str | None:
    r"""What the last `\boxed{}` of a text holds."""
    end = len(text)
    while (start := text.rfind("\\boxed", 0, end)) >= 0:
        opening = re.compile(r"\\boxed\s*\{").match(text, start)
        if opening is not None:
            content = _until_closed(text[opening.end() : opening.end() + MAX_CHARACTERS + 1])
            if content is not None:
                return content
        end = start
    return None


def _until_closed(text: str) -> str | None:
    depth = 1
    for place, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if not depth:
            return text[:place]
    return None


def _marked(text: str) -> str | None:
    _, mark, rest = text.rpartition("####")
    return rest.lstrip(" ").partition("\n")[0] if mark else None


def _stated(text: str) -> str | None:
    ends = [match.end() for match in _STATED.finditer(text)]
    if not ends:
        return None
    line = text[ends[-1] : ends[-1] + MAX_CHARACTERS].partition("\n")[0]
    sentence = clean(_SENTENCE_END.split(line, maxsplit=1)[0])
    if quantity(sentence) is not None:
        return sentence
    first = _LAST.match(sentence)
    if first is not None and not re.match(r"\s*[-+*/^=<>\\(\u00d7\u00f7]", sentence[first.end() :]):
        return first[0]
    result = sentence.rpartition("=")[2].strip()
    if not re.search(r"(?<![\\A-Za-z])[A-Za-z]{3,}", result):
        return result
    return first[0] if (first := _LAST.search(result)) is not None else None


def _last_number(text: str) -> str | None:
    # Spacing inside numbers and fractions has to be read as in the other places.
    text = _FRACTION.sub(r" \1/\2", re.sub(r"\\[dtc]frac\b", r"\\frac", text))
    text = text.replace("{,}", ",").replace("\\$", "$").replace("\\%", "%")
    found = [match[0] for match in _LAST.finditer(text)]
    return found[-1] if found and len(found[-1]) <= MAX_CHARACTERS else None
