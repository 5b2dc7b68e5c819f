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
from alignctl.rewards.notation import canonical, plain
from alignctl.rewards.quantities import NUMBER
from alignctl.rewards.readings import read

MAX_CHARACTERS = 300
"""Longest text that is taken for an answer; exact arithmetic on so few digits is instant."""

_CALCULATION = re.compile(r"<<[^<>\n]*>>")  # GSM8K's notes for a calculator: 48/2 = <<48/2=24>>24

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*(?:\[[^\]\n]{0,20}\]\s*){0,2}")
# What TeX would box without braces, and people then mean: a number, a command with its arguments.
_GROUP = r"\s*(?:\{[^{}]*\}|\d)"
_ATOM = re.compile(
    rf"[-+]?\s*(?:\\[dtc]?frac{_GROUP}{_GROUP}|\\sqrt(?:\[[^\]]*\])?{_GROUP}"
    rf"|\\(?:text\w*|math\w+){_GROUP}|\\(?!text|math)[A-Za-z]+|(?:{NUMBER})|[A-Za-z](?=\s*[$\\]))"
)
_GOES_ON = re.compile(r"\s*[\^_+*/=<>-]|\\(?![)\],;!. ]|quad|text|mbox)|[(!%{A-Za-z]")
_MATHS_END = re.compile(r"\$|\\\)|\\\]|\n|\Z")
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;&]|\\[()\[\],;! \\]|\\q?quad|\\text\s*\{\s*(?:,?\s*(?:and|or)\s*)?\}|\*"
    r"|\b(?:and|or)\b|\b[A-Za-z](?:_\w)?\s*=)*"
)

# What stands around a box: a formula that goes on, another answer, a denial or a question.
_BEFORE_BOX = re.compile(
    r"(?:[\w)}]\s?\*|(?<!\n)[-+/^_<>\u00d7\u00b7\u00f7]|\\(?:cdot|times|div|neq?|l[et]q?|g[et]q?|pm)|\d(?=\Z)|[\^_}]\{"
    r"|\\(?:frac|dfrac|tfrac|sqrt|binom)\{|\b(?:not|n't|never|either|neither|nor)(?= ?\$?\Z))"
    r"\s?\$?\Z"
)
_AFTER_BOX = re.compile(
    r"[A-Za-z0-9(]|\s?(?:[-+*/\u00d7\u00b7\u00f7]\s?[\d\\(a-z]\b|[-+*/]\s?\\|[\^_]\s?\{?\s?[\w-]|!\s?\$"
    r"|\\(?:cdot|times|div|sqrt|[dt]?frac|pi|pm)\b)"
    r"|\s?\$?\s?(?:,|or\b|and\b|\\text\s?\{\s?(?:or|and)\s?\})\s*(?:(?:maybe|perhaps|possibly)\b|\$?\d)"
    r"|[\s$*)]*\?"
)
_TAGGED = re.compile(r"<answer>(.{1,1000}?)</answer>", re.DOTALL | re.IGNORECASE)
_MARK = re.compile(r"(?<!#)####(?!#)[ \t]*([^\n#]*)")
_HEADING = re.compile(r"(?:\d+|[A-Z])(?:[.):]\s+\D|\s+(?:-\s+)?[A-Z][a-z])")
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
    """Returns the answer that a completion ends with, in canonical form; None for none."""
    text = _CALCULATION.sub("", plain(completion)).rpartition("</think>")[2]
    if "<think>" in text:  # it ends in thoughts
        return None
    tagged = _last(_TAGGED, text)
    text = tagged[1] if tagged else text
    boxed = _last_box(text)
    if boxed is not None:
        said = _SAID.search(boxed)
        return (_resolved(boxed[said.end() :]) if said else canonical(boxed)) or None
    stated = _last_statement(text)
    if stated is not None:
        return stated or None
    return _alone(text) or _last_number(_CHINESE.sub(" ", text))


def _alone(text: str) -> str | None:
    """A completion that is an answer and nothing else."""
    answer = canonical(text) if len(text) < _SHORT else ""
    reading = read(answer)
    is_list = isinstance(reading, Group) and not reading.brackets
    has_words = re.search(r"(?<![\\A-Za-z])[A-Za-z]{2}", answer) is not None
    return answer if _is_definite(answer) and not is_list and not has_words else None


def boxed_answer(text: str) -> str | None:
    """Returns what the last box of a text holds, as it is written; None for none."""
    return _last_box(text) or None


def marked_answer(text: str) -> str | None:
    """Returns what follows the last `####` of a text, as it is written; None for none."""
    head, mark, rest = text.rpartition("####")
    is_plain = mark and not head.endswith("#") and "\n" not in rest.strip()
    if is_plain and rest.strip() and not _HEADING.match(rest.strip()):  # as GSM8K's rows end
        return rest
    return _last_mark(text)


def _last_box(text: str) -> str | None:
    """What the last box holds; nothing where the text ends inside of it; None without a box."""
    boxes: list[tuple[int, int, str]] = []
    place, is_cut = 0, False
    while match := _BOX.search(text, place):
        place = match.end()
        end = _box_end(text, place)
        if end is None:
            is_cut = len(text) - place <= MAX_CHARACTERS and text.startswith("{", place)
            is_cut = is_cut or place == len(text)
            continue
        content, place = text[place:end], end
        content = content[1:-1] if content.startswith("{") else content
        if content.strip():
            boxes.append((match.start(), end, content))
            is_cut = False
    if is_cut or not boxes:
        return "" if is_cut else None
    start, end, _ = boxes[-1]
    if _BEFORE_BOX.search(text[max(0, start - 20) : start]) or _AFTER_BOX.match(text, end):
        return ""
    contents = [boxes[-1][2]]
    for before, after in zip(boxes[-2::-1], boxes[:0:-1], strict=True):
        if after[0] - before[1] > 60 or not _BETWEEN_BOXES.fullmatch(text, before[1], after[0]):
            break
        if before[2].strip() not in {each.strip() for each in contents}:
            contents.insert(0, before[2])
    return contents[0] if len(contents) == 1 else ", ".join(each.strip(" $") for each in contents)


def _box_end(text: str, start: int) -> int | None:
    """The end of what a box holds; None if that is not closed, or nothing that can be boxed."""
    if text.startswith("{", start):
        depth = 0
        for place in range(start, min(len(text), start + MAX_CHARACTERS + 2)):
            depth += (text[place] == "{") - (text[place] == "}")
            if not depth:
                return place + 1
        return None
    atom = _ATOM.match(text, start)
    if atom is None:
        return None
    if not _GOES_ON.match(text, atom.end()):
        return atom.end()
    return _MATHS_END.search(text, atom.end()).start()  # type: ignore[union-attr]


def _last_statement(text: str) -> str | None:
    """What the last statement says; nothing where that is no answer; None without a statement."""
    said = _last(_SAID, text)
    mark = _last_mark(text, said.end() if said else 0)
    if mark is not None:
        if mark.rstrip(" *").endswith("?"):
            return ""
        return canonical(_sentence(mark)[:MAX_CHARACTERS])
    return None if said is None else _resolved(text[said.end() : said.end() + MAX_CHARACTERS])


def _last_mark(text: str, start: int = 0) -> str | None:
    """What follows the last `####` that is no heading: a number, or whatever ends the text."""
    marks = [mark for mark in _MARK.finditer(text, start) if mark[1].strip()]
    for mark in reversed(marks[-50:]):
        rest = text[mark.end() :]
        if not _HEADING.match(mark[1]) and (
            not rest.strip()
            or ("=" not in rest and _is_definite(canonical(_sentence(mark[1])[:MAX_CHARACTERS])))
        ):
            return mark[1]
    return None


def _is_definite(answer: str) -> bool:
    """Whether an answer is more than words, which may be a heading."""
    reading = read(answer)
    if isinstance(reading, Group):
        return not any(isinstance(item, Words | Literal) for item in reading.items)
    return not isinstance(reading, Words | Literal | None)


def _sentence(text: str) -> str:
    """The first sentence of a text, without the full stop."""
    end = _SENTENCE_END.search(text)
    return text[: end.start()] if end else text


def _resolved(text: str) -> str | None:
    """The answer in what follows "the answer is": nothing where it is not one answer."""
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
    """The one answer in a sentence with other words; nothing if it could be another."""
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
    """A number with the letters and signs that it stands among."""
    if " " in number:
        return number
    return next(word for word in sentence.split(" ") if number in word)


def _last(pattern: re.Pattern[str], text: str, start: int = 0) -> re.Match[str] | None:
    last = deque(pattern.finditer(text, start), maxlen=1)
    return last[0] if last else None


def _last_number(text: str, *, is_denied: bool = False) -> str | None:
    """The last number that the words around it let be the answer.

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
    """Whether the words around the last number let it be the answer."""
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
