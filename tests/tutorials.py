"""Reads the names that tutorials mention: what a reader of theirs would look for here.

    python -m tests.tutorials FOLDER > tests/data/tutorials.txt

FOLDER has the tutorials as text files. Names only, no prose: scripts and other files, variables of
the shell, keys of YAML files, and words that are written as names are.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

_SUFFIXES = "sh|py|ya?ml|json|bin|pt|model|txt"
"""Of programs, settings and models; what the tutorials' readers call their data is theirs."""
_PATTERNS = (
    # Files, without their folders. ASCII: Chinese text leaves no space around them.
    rf"(?<![\w.-])([\w.-]*\w\.(?:{_SUFFIXES}))\b",
    # Variables: given a value or asked for it, and arguments by number.
    r"(?<![\w.-])([A-Za-z_]\w*)=(?!=)",
    r"\$\{?([A-Za-z_]\w*)",
    # Keys of YAML.
    r"(?m)^[ \t]*(?:- )?([a-z]\w*):(?:[ \t]|$)",
    # Words of several parts.
    r"(?<![\w.-])([A-Za-z0-9]+(?:_[A-Za-z0-9]+)+)(?![\w.-])",
    # What stands alone in code.
    r"`([A-Za-z]\w*)`",
)


def names(text: str) -> set[str]:
    """The names in a text."""
    return {name for pattern in _PATTERNS for name in re.findall(pattern, text, re.ASCII)}


def _read(folder: Path) -> Iterator[str]:
    for file in sorted(folder.glob("*.txt")):
        yield file.read_text(encoding="utf-8")


if __name__ == "__main__":
    found = {name for text in _read(Path(sys.argv[1])) for name in names(text)}
    print("\n".join(sorted(found)))
