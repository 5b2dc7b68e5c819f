"""The few lines every command shares: data to stdout, words to stderr, errors with their hints."""

import os
import sys
import traceback
from collections.abc import Iterable

from alignctl.errors import AlignctlError


def emit(text: str) -> None:
    """Print data that someone may pipe to another program."""
    print(text)


def say(text: str) -> None:
    """Print words for a person."""
    print(text, file=sys.stderr)


def note_all(lines: Iterable[str]) -> None:
    """Print what a person should know, although it stops nothing: a line each."""
    for line in lines:
        say(f"note: {line}")


def report(error: AlignctlError) -> int:
    """Explain a failure on stderr; returns the exit code it calls for."""
    return explain(error.message, error.hint, error.exit_code)


def explain(message: str, hint: str | None, exit_code: int) -> int:
    """Print `error:` and `hint:` lines; returns `exit_code`."""
    say(f"{_painted('error:', '1;31')} {message}")
    if hint:
        say(f"{_painted('hint:', '1;36')} {hint}")
    return exit_code


def report_bug(error: Exception) -> int:
    """Explain a failure that nobody foresaw; returns the exit code it calls for."""
    traceback.print_exception(error)
    return explain(
        f"unexpected {type(error).__name__}: {error}",
        "this is a defect of alignctl; please open an issue with the lines above and with what "
        "`alignctl doctor` prints",
        1,
    )


def _painted(text: str, code: str) -> str:
    """The text in colour, if someone looks at it and has not asked for plain text."""
    if os.environ.get("NO_COLOR") or not sys.stderr.isatty():
        return text
    return f"\x1b[{code}m{text}\x1b[0m"
