r"""Where a completion says its final answer.

The first of these that is there: the last box (`\boxed{5}`, `\boxed 5`, `\fbox{5}`; boxes that
only "and" or a comma parts are one answer); the last statement, be it `#### 5` or "the answer is
5"; the last number. A heading such as `#### 2. Sum` is no statement. A text that ends in an open
box was cut, and one that says two things, a range or what the answer is not, gives none. Every
search is linear in the text, and no answer is longer than 300 characters: garbage costs nothing.
"""

import re
from collections import deque

from alignctl.rewards.kinds import Group, Literal, Words
from alignctl.rewards.marks import HEADING, MAX_CHARACTERS, last_box
from alignctl.rewards.notation import canonical, plain
from alignctl.rewards.quantities import NUMBER
from alignctl.rewards.readings import read

_CALCULATION = re.compile(r"<<[^<>\n]*>>")  # GSM8K's notes for a calculator: 48/2 = <<48/2=24>>24


_TAGGED = re.compile(r"<answer>(.{1,1000}?)</answer>", re.DOTALL | re.IGNORECASE)
_MARK = re.compile(r"(?<!#)####(?!#)[ \t]*([^\n#]*)")
_SAID = re.compile(
    r"\banswers?\b[^.!?\n:=#]{0,60}?\b(?:is|are)\b[\s:*_]*"
    r"|\banswers?[ *_]*[:=\uff1a][\s:*_]*"
    r"|^[ \t*_#]*(?:the |my )?(?:final |correct )?answer[ \t*_#]*\n\s*"
    r"|(?:\u7b54\u6848|\u7b54)\s*(?:\u662f|\u4e3a|[:\uff1a])[\s:*]*",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_END = re.compile(r"(?<!\bRs)[.!?;\u3002](?=\s|\Z|\*)")
_DISPLAY = re.compile(r"\s*(?:\$\$|\\\[)\s*(.{1,300}?)\s*(?:\$\$|\\\])", re.DOTALL)
_FILLER = re.compile(
    r"^(?:(?:therefore|thus|then|so|hence|simply|just|exactly|indeed|equal to|approximately|about"
    r"|roughly|around|now|also|option|choice|clearly|obviously|the number)[\s,:]+)+",
    re.IGNORECASE,
)
_NEGATION = re.compile(
    r"\b(?:not|never|cannot|no longer|wrong|incorrect)\b|n['\u2019]t\b", re.IGNORECASE
)
_INSTEAD = re.compile(
    r"^not\b.{1,60}?(?:\bbut\b|[,;.]? (?:but )?(?:it|it's|rather)(?: is)?)\s+", re.IGNORECASE
)
_TAIL = re.compile(r"[\s,(]+(?:and )?(?:not|rather than|instead of)\b.*$", re.IGNORECASE)
_HEDGE = re.compile(
    r"\b(?:or|either|neither|between|from|maybe|perhaps|possibly|probably|might|could|twice|half"
    r"|double|triple|root|less|more|fewer|greater|least|most|larger|smaller|higher|lower|than|under"
    r"|over|up|of|plus|minus|times|squared|cubed|product|sum|difference|to|through|sure|unknown)\b",
    re.IGNORECASE,
)
_REST = re.compile(  # what may follow an answer in its sentence without changing it
    r",|\(|\b(?:in|for|after|per|every|each|within|during|on|at|because|since|as|when|if|left)\b"
)

_NUMBER = re.compile(
    rf"(?:(?<![\w).\u20ac$-])-)?(?<![\w.,])(?:\d+\s(?=\d+\s?/\s?\d))?(?:{NUMBER})(?:\s?/\s?\d+)?"
)
_AFTER = re.compile(
    r"\s?[ap]m\b|\s(?:per\s?cent|hundred|thousand|million|billion|trillion|dozen)\b"
)
_OTHER_BEFORE = re.compile(
    r"(?:\d[^\s=]*\s*(?:,|;|\band|\bor|\bto|-)?|\b(?:or|either|between|than|least|most)"
    r"|\d[^\s=]*\s+[A-Za-z]+\s+(?:and|or|to|by)\b|[-+*/^\u00d7\u00b7\u00f7])\s*$",
    re.IGNORECASE,
)
_OTHER_AFTER = re.compile(
    r"[\s,.!;]*(?:or|maybe|perhaps|alternatively|sure|certain|confident)\b", re.IGNORECASE
)
_WITHIN = re.compile(
    r"\b(?:in|after|within|during|every|per|step|question|problem)\s*$", re.IGNORECASE
)
# No spaces are around the numbers of a Chinese text.
_CHINESE = re.compile("[\u3000-\u9fff\uff01-\uff0f\uff1a-\uff60]")
_SHORT = 60
"""A completion of fewer characters may be an answer alone."""
_MATHS = re.compile(
    r"\$\$?(?=\S)([^$]{1,300})(?<=\S)\$\$?(?!\d)|\\\((.{1,300}?)\\\)|\\\[(.{1,300}?)\\\]",
    re.DOTALL,
)


def final_answer(completion: str) -> str | None:
    """Find the answer that a completion ends with, in canonical form; None for none."""
    text = _CALCULATION.sub("", plain(completion)).rpartition("</think>")[2]
    if "<think>" in text:  # it ends in thoughts
        return None
    tagged = _last(_TAGGED, text)
    text = tagged[1] if tagged else text
    boxed = last_box(text)
    if boxed is not None:
        said = _SAID.search(boxed)
        return (_resolve(boxed[said.end() :]) if said else canonical(boxed)) or None
    stated = _last_statement(text)
    if stated is not None:
        return stated or None
    return _alone(text) or _last_number(_CHINESE.sub(" ", text))


def _alone(text: str) -> str | None:
    """Read a completion that is an answer and nothing else; None for any other."""
    answer = canonical(text) if len(text) < _SHORT else ""
    reading = read(answer)
    is_list = isinstance(reading, Group) and not reading.brackets
    has_words = re.search(r"(?<![\\A-Za-z])[A-Za-z]{2}", answer) is not None
    return answer if _is_definite(answer) and not is_list and not has_words else None


def _last_statement(text: str) -> str | None:
    """Find what the last statement says; "" if that is no answer; None without a statement."""
    said = _last(_SAID, text)
    mark = _last_mark(text, said.end() if said else 0)
    if mark is not None:
        if mark.rstrip(" *").endswith("?"):
            return ""
        return canonical(_sentence(mark)[:MAX_CHARACTERS])
    return None if said is None else _resolve(text[said.end() : said.end() + MAX_CHARACTERS])


def _last_mark(text: str, start: int = 0) -> str | None:
    """Find the text after the last `####` that is no heading: a number, or what ends the text."""
    marks = [mark for mark in _MARK.finditer(text, start) if mark[1].strip()]
    for mark in reversed(marks[-50:]):
        rest = text[mark.end() :]
        if not HEADING.match(mark[1]) and (
            not rest.strip()
            or ("=" not in rest and _is_definite(canonical(_sentence(mark[1])[:MAX_CHARACTERS])))
        ):
            return mark[1]
    return None


def _is_definite(answer: str) -> bool:
    """Tell whether an answer is more than words, which may be a heading."""
    reading = read(answer)
    if isinstance(reading, Group):
        return not any(isinstance(item, Words | Literal) for item in reading.items)
    return not isinstance(reading, Words | Literal | None)


def _sentence(text: str) -> str:
    """Return the first sentence of a text, without the full stop."""
    end = _SENTENCE_END.search(text)
    return text[: end.start()] if end else text


def _resolve(text: str) -> str | None:
    """Take the answer out of what follows "the answer is"; "" where it is not one answer."""
    display = _DISPLAY.match(text)
    line = display[1] if display else next((li for li in text.split("\n") if li.strip()), "")
    if not line.strip():
        return None
    sentence = _sentence(line)
    after = line[len(sentence) :]
    if after.startswith("?") or _OTHER_AFTER.match(after):
        return ""
    sentence = re.sub(r"\s\[\d+\]$", "", sentence)  # a source
    sentence = _FILLER.sub("", sentence.strip(" *_`"), count=1)
    sentence = _TAIL.sub("", _INSTEAD.sub("", sentence, count=1))
    if _NEGATION.search(sentence):
        return ""
    answer = canonical(sentence)
    if _is_definite(answer) or not re.search(r"\d", answer):
        return answer
    return canonical(_first_of(answer))


def _first_of(sentence: str) -> str:
    """Find the one answer in a sentence with other words; "" if it could be another."""
    for place in _REST.finditer(sentence):
        head, tail = sentence[: place.start()].strip(), sentence[place.end() :]
        is_list = place[0] == "," and re.match(r"\s*\d", tail)
        if _is_definite(head) and not _OTHER_AFTER.match(tail) and not is_list:
            return "" if re.search(r"\bor\b", tail) else head
    result = sentence.rpartition("=")[2].strip()
    if result != sentence and _is_definite(result) and not re.search(r",|\b(?:and|or)\b", sentence):
        return result
    numbers = {match[0] for match in _NUMBER.finditer(sentence)}
    return "" if _HEDGE.search(sentence) or len(numbers) != 1 else _run(sentence, numbers.pop())


def _run(sentence: str, number: str) -> str:
    """Return a number with the letters and signs that it stands among."""
    if " " in number:
        return number
    return next(word for word in sentence.split(" ") if number in word)


def _last(pattern: re.Pattern[str], text: str, start: int = 0) -> re.Match[str] | None:
    last = deque(pattern.finditer(text, start), maxlen=1)
    return last[0] if last else None


def _last_number(text: str, *, is_denied: bool = False) -> str | None:
    """Find the last number, if the words around it let it be the answer.

    Args:
        text: All of a completion, or what stands before a number that is denied.
        is_denied: Whether one was denied; behind a second one nothing is looked for.
    """
    found = _last(_NUMBER, text)
    if found is None:
        return None
    maths = _last(_MATHS, text, max(0, found.start() - MAX_CHARACTERS))
    if maths is not None and maths.end() > found.end():
        start, end = maths.span()
        answer = maths[1] or maths[2] or maths[3]
    else:
        start, end = found.span()
        while start and not text[start - 1].isspace():
            start -= 1
        while end < len(text) and not text[end].isspace():
            end += 1
        if end - start > MAX_CHARACTERS:
            return None
        if after := _AFTER.match(text, end):
            end = after.end()
        answer = text[start:end].strip("*_()").rstrip("*_).,;:!?")
        if re.match(r"[^=]*\d[^=]*=|=", answer):  # 48+24=72
            answer = answer.rpartition("=")[2]
        if text[start:end].endswith("!") and re.search(r"\d!", text[start:end]) is None:
            return None
    sentence = re.split(r"[.!?]\s|\n", text[max(0, start - MAX_CHARACTERS) : start])[-1]
    if _WITHIN.search(sentence) and re.search(r"\d", sentence):  # = 72 clips in 2 months
        result = _sentence(sentence.rpartition("=")[2] + text[start:end])
        return _first_of(canonical(result)) or None if "=" in sentence else None
    if other := re.search(r"(?:,| and| \() ?not\s*$", sentence):  # 5, not 6
        end = start - len(sentence) + other.start()
        return None if is_denied else _last_number(text[:end], is_denied=True)
    if not _is_alone(text, start, end):
        return None
    answer = canonical(answer)
    return answer if _is_definite(answer) else None


def _is_alone(text: str, start: int, end: int) -> bool:
    """Tell whether the words around the last number let it be the answer."""
    before = re.split(r"[.!?]\s|\n", text[max(0, start - 120) : start])[-1]
    after = _sentence(text[end : end + MAX_CHARACTERS].partition("\n")[0])
    before = re.sub(r"\b[A-Za-z](?:_\w)?\s*=\s*$", "", before)  # x = 5 or x =
    is_calculation = re.match(r"[^=]*\d[^=]*=|[^\w=]*=", text[start:end]) is not None
    is_bullet = before.strip() in ("-", "*", "+")
    negation = _last(_NEGATION, before)
    since = before[negation.end() :] if negation else "but"
    is_denied = "but" not in since.split() and re.fullmatch(r"(?:\s+\w+){0,2}\s*", since)
    is_asked = text.startswith("?", end + len(after)) or text[start:end].rstrip("*").endswith("?")
    return (
        (is_bullet or is_calculation or not _OTHER_BEFORE.search(before))
        and not _OTHER_AFTER.match(after)
        and not is_denied
        and not is_asked
    )
