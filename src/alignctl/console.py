"""The few lines every command shares: data to stdout, words to stderr, errors with their hints."""

import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterable

from alignctl.errors import AlignctlError, RunError

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys instead of showing it: control characters, and with them escape sequences;
line separators; embeddings, overrides and isolates, which change the order of what is around them;
and bytes of file names that are no characters. Line breaks and tabs are none of these."""


def shown(text: str) -> str:
    r"""Escape what a terminal would obey, such as \x1b, in names and contents of files."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def emit(text: str) -> None:
    """Print data that someone may pipe to another program, which gets it as it is.

    Where that reads no more, as `head` does, the command ends without a word.

    Raises:
        RunError: The disk is full.
    """
    try:
        print(shown(text) if sys.stdout.isatty() else text, flush=True)
    except OSError as error:
        # What is left in the buffer goes nowhere, without a second failure when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise SystemExit(128 + signal.SIGPIPE) from None
        raise RunError(f"the output cannot be written: {error.strerror}") from error


_spoken = [time.monotonic()]
"""When the program began, and when something was last shown to a person."""


def say(text: str) -> None:
    """Print words for a person."""
    print(shown(text), file=sys.stderr)
    note_sign()


def note_sign() -> None:
    """Note that a person has just seen something move."""
    _spoken[1:] = [time.monotonic()]


def has_spoken() -> bool:
    """Tell whether a person has seen anything move yet."""
    return len(_spoken) > 1


def still_seconds() -> float:
    """Return for how long nothing has moved."""
    return time.monotonic() - _spoken[-1]


def note_all(lines: Iterable[str]) -> None:
    """Print what a person should know, although it stops nothing: a line each."""
    for line in lines:
        say(f"note: {line}")


def report(error: AlignctlError) -> int:
    """Explain a failure on stderr; return the exit code it calls for."""
    return explain(error.message, error.hint, error.exit_code)


def explain(message: str, hint: str | None, exit_code: int) -> int:
    """Print `error:` and `hint:` lines; return `exit_code`."""
    print(f"{_painted('error:', '1;31')} {shown(message)}", file=sys.stderr)
    if hint:
        print(f"{_painted('hint:', '1;36')} {shown(hint)}", file=sys.stderr)
    return exit_code


def report_bug(error: Exception) -> int:
    """Explain a failure that nobody foresaw; return the exit code it calls for."""
    say("".join(traceback.format_exception(error)).rstrip())
    return explain(
        f"unexpected {type(error).__name__}: {error}",
        "this is a defect of alignctl; please open an issue with the lines above and with what "
        "`alignctl doctor` prints",
        1,
    )


def _painted(text: str, code: str) -> str:
    """Colour a text, if someone looks at it and has not asked for plain text."""
    if os.environ.get("NO_COLOR") or not sys.stderr.isatty():
        return text
    return f"\x1b[{code}m{text}\x1b[0m"
