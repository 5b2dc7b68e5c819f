"""The language of a text, by the `py3langid` library, whose model comes with it."""

import difflib
from collections.abc import Sequence
from functools import cache
from typing import Any

from alignctl.errors import UserError

# Enough to tell languages apart; a long document costs no more than a short one.
_CHARACTERS = 2000


def language_of(text: str) -> str:
    """Return the code of the language that a text is most likely in."""
    code: str = _identifier().classify(text[:_CHARACTERS])[0]
    return code


def check_languages(codes: Sequence[str]) -> None:
    """Refuse codes of languages that the library does not recognise."""
    known: list[str] = sorted(_identifier().labels)
    for code in codes:
        if code not in known:
            near = difflib.get_close_matches(code, known, n=1, cutoff=0.5)
            raise UserError(
                f"--languages: {code!r} is not the code of a language that is recognised"
                + (f"; did you mean {near[0]}?" if near else ""),
                "codes are those of ISO 639-1: " + " ".join(known),
            )


@cache
def _identifier() -> Any:
    from py3langid import langid

    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
