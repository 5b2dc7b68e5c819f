r"""Which characters of a text stay, which links go, and what white space becomes.

A policy is a set of characters: `keep`, `pai`, or one's own, written as a character class of
Python's `re`, such as `[0-9a-zA-Z\n .,]`.

`keep` has everything but what carries no text: control characters, marks of text direction, zero
width spaces (not the joiners, which Indic and Persian words need), private use, U+FFFD.

`pai` is the list of PAI-Megatron-Patch's clean_raw_text.py, whose links end where that program's
do: digits, Latin letters, U+4E00 to U+9FA5, some punctuation. Newlines are not in it. That program
squeezes spaces before it deletes characters, and so leaves two where one stood between spaces; here
there is one, so that clean text stays as it is.
"""

import difflib
import re
from dataclasses import dataclass

from alignctl.corpus.cleaning.pii import mask
from alignctl.errors import UserError

_KEEP = (
    r"[^\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"
    r"\ud800-\uf8ff\ufdd0-\ufdef\ufeff\ufff9-\uffff\U000f0000-\U0010ffff]"
)
_PAI = (
    r"[0-9a-zA-Z\u4e00-\u9fa5.\uff0c ,\-\u3002%\u300a*\u300b/\u2022\u3001&\uff06(\u2014)\uff08+"
    r"\uff09\uff1a\uff1f!\uff01\u201c\u201d\xb7]"
)
_NAMED = {"keep": _KEEP, "pai": _PAI}

# A sentence's full stop behind a link is not part of it.
_URL = r"(?:(?:https?|ftp)://|\bwww\.)[!#-;=?-_a-z~]*[#$%&*+/-9=@-Z_a-z~-]"
# `[$-_]` is a range there: it has most punctuation, but neither # nor ~.
_PAI_URL = r"https?://[!$-_a-z]+"

_LINE_BREAK = re.compile(r"\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_SPACES = re.compile(r"[^\S\n]+")
_AROUND_BREAK = re.compile(r" ?\n ?")
_BLANK_LINES = re.compile(r"\n{3,}")


@dataclass(frozen=True)
class Rules:
    """What happens to the characters of a text.

    Attributes:
        policy: `keep`, `pai`, or a character class.
        urls: Whether links are removed.
        pii: Whether e-mail addresses, telephone, card and identity numbers and IP addresses are
            replaced by `<EMAIL>` and the like.
        white_space: Whether runs of spaces become one, those around line breaks none, and runs of
            line breaks two at most.
    """

    policy: str = "keep"
    urls: bool = True
    pii: bool = False
    white_space: bool = True


class Cleaner:
    """Cleans texts by rules; what is clean stays as it is."""

    def __init__(self, rules: Rules) -> None:
        """Compile the rules.

        Raises:
            UserError: The policy is neither a name nor a character class.
        """
        self._rules = rules
        self._unwanted = re.compile(_match_unwanted(rules.policy))
        self._url = re.compile(_PAI_URL if rules.policy == "pai" else _URL)

    def clean(self, text: str) -> str:
        """Clean a text by the rules.

        What one rule takes away can make another one apply: a character that is not kept may have
        stood inside a link. So the rules are applied until they change nothing.
        """
        while (once := self._pass(text)) != text:
            text = once
        return text

    def _pass(self, text: str) -> str:
        if self._rules.urls:
            text = self._url.sub("", text)
        if self._rules.pii:
            text = mask(text)
        text = self._unwanted.sub("", text)
        return _normalise(text) if self._rules.white_space else text


def _normalise(text: str) -> str:
    text = _SPACES.sub(" ", _LINE_BREAK.sub("\n", text))
    return _BLANK_LINES.sub("\n\n", _AROUND_BREAK.sub("\n", text)).strip()


def _match_unwanted(policy: str) -> str:
    """Make the pattern that matches what a policy does not keep."""
    kept = _NAMED.get(policy, policy)
    if not re.fullmatch(r"\[\^?\]?(?:\\.|[^\]\\])+\]", kept, re.DOTALL):
        near = difflib.get_close_matches(policy, _NAMED, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"--policy {policy}: neither keep, pai, nor a character class in brackets",
            f"{meant}a class of one's own looks like '[0-9a-zA-Z .,]'",
        )
    inverted = f"[{kept[2:]}+" if kept.startswith("[^") else f"[^{kept[1:]}+"
    try:
        re.compile(inverted)
    except re.error as error:
        raise UserError(
            f"--policy {policy}: not a character class of Python's re: {error}"
        ) from error
    return inverted
