"""One sample as the model will see it: what is learned in colour, what is only read dimmed."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.text import Text

SUPERVISED_STYLE = "bold green"
CONTEXT_STYLE = "dim"
OPENING = "[["
CLOSING = "]]"


def render(pieces: Sequence[tuple[str, bool]]) -> Text:
    """Write the sample for a terminal.

    Args:
        pieces: The decoded tokens in order, each with whether the model learns to say it.

    Returns:
        Text in which learned pieces are coloured.
    """
    text = Text()
    for is_supervised, run in _runs(pieces):
        text.append(run, style=SUPERVISED_STYLE if is_supervised else CONTEXT_STYLE)
    return text


def plain(pieces: Sequence[tuple[str, bool]]) -> str:
    """Write the sample without colour: learned stretches stand between `[[` and `]]`."""
    return "".join(
        f"{OPENING}{run}{CLOSING}" if is_supervised else run for is_supervised, run in _runs(pieces)
    )


def visible(text: str) -> str:
    r"""Make every character visible: a newline as `\n` and a new line, a tab as `\t`, and so on.

    Whatever cannot be printed is escaped. That also keeps a data file from sending control
    sequences to the terminal.
    """
    return "".join(_visible_character(character) for character in text)


def _visible_character(character: str) -> str:
    if character == "\n":
        return "\\n\n"
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


def _runs(pieces: Iterable[tuple[str, bool]]) -> Iterable[tuple[bool, str]]:
    for is_supervised, group in groupby(pieces, key=lambda piece: piece[1]):
        run = visible("".join(text for text, _ in group))
        if run:
            yield is_supervised, run
