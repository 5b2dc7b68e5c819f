"""Keys and passwords taken out of what a page shows of configurations and command lines.

Neither should ever hold one: this only protects against a mistake.
"""

import re
from typing import Any

HIDDEN = "(hidden)"

_NAME = (
    r"(?:api|access|secret|private|auth|judge|hf|account|client)[._-]?(?:key|token)|apikey"
    r"|secret|token|key|passwd|password|passphrase|credentials?|authorization|bearer|cookie"
)
_SECRET_NAME = re.compile(rf"(?:^|[._-])(?:{_NAME})$", re.IGNORECASE)

_ASSIGNED = re.compile(
    rf"(?P<name>(?:^|(?<=[\s'\"]))(?:--[\w.-]*?(?<![A-Za-z])(?:{_NAME})(?:=|\s+)"
    rf"|[\w.-]*?(?<![A-Za-z])(?:{_NAME})=))"
    r"(?P<value>'[^']*'|\"[^\"]*\"|[^\s'\"]+)",
    re.IGNORECASE,
)
"""`name=value` and `--name value`, as command lines have them."""

_SHAPES = re.compile(
    r"\b(?:sk|hf|ghp|gho|github_pat|glpat|xox[abp])[-_][\w-]{12,}"
    r"|\bAKIA[0-9A-Z]{12,}|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"
    r"|(?<=://)[^\s/@]+:[^\s/@]+(?=@)"
)
"""What keys of well-known services look like, and passwords in addresses."""


def hide(name: str, value: Any) -> Any:
    """Return a value as it may be shown under a dotted name."""
    if value is not None and _SECRET_NAME.search(name):
        return HIDDEN
    return _SHAPES.sub(HIDDEN, value) if isinstance(value, str) else value


def hide_in_commands(text: str) -> str:
    """Return command lines as they may be shown."""
    return str(hide("", _ASSIGNED.sub(lambda found: f"{found['name']}{HIDDEN}", text)))
