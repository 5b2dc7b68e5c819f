"""Boxes and marks: where a text says plainly what its answer is."""

import re

MAX_CHARACTERS = 300
"""Longest text that is taken for an answer; exact arithmetic on so few digits is instant."""

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*(?:\[[^\]\n]{0,20}\]\s*){0,2}")
# What TeX would box without braces, and people then mean: a number, a command with its arguments.
_GROUP = r"\s*(?:\{[^{}]*\}|\d)"
_ATOM = re.compile(
    rf"[-+]?\s*(?:\\[dtc]?frac{_GROUP}{_GROUP}|\\sqrt(?:\[[^\]]*\])?{_GROUP}"
    rf"|\\(?:text\w*|math\w+){_GROUP}|\\(?!text|math)[A-Za-z]+|(?:\d[\d,]*(?:\.\d+)?)|[A-Za-z](?=\s*[$\\]))"
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
HEADING = re.compile(r"(?:\d+|[A-Z])(?:[.):]\s+\D|\s+(?:-\s+)?[A-Z][a-z])")
"""What follows `####` in a Markdown heading, and not before an answer."""


def find_boxed(text: str) -> str | None:
    """Find what the last box of a text holds, as it is written; None for none."""
    return last_box(text) or None


def find_marked(text: str) -> str | None:
    """Find what follows the last `####` of a text, as it is written; None for none."""
    head, mark, rest = text.rpartition("####")
    is_plain = mark and not head.endswith("#") and "\n" not in rest.strip()
    if is_plain and rest.strip() and not HEADING.match(rest.strip()):  # as GSM8K's rows end
        return rest
    return None


def last_box(text: str) -> str | None:
    """Find what the last box holds; "" where the text ends inside of it; None without a box."""
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
    """Find the end of a box's content; None if it is not closed, or nothing that can be boxed."""
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
