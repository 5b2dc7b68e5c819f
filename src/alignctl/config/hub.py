"""Names of data sets on the Hugging Face hub, where a path may stand, too."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_SHAPE = re.compile(
    r"(?P<repo>\w[\w.-]*/\w[\w.-]*)"
    r"(?::(?P<config>[\w .+-]*)(?::(?P<split>\w[\w.]*))?)?"
    r"(?:@(?P<revision>\w[\w./+-]*))?",
    re.ASCII,
)
_FILE = re.compile(r"\.(jsonl?|parquet|arrow|csv|txt|zst|gz|bin|idx)\Z")


@dataclass(frozen=True)
class HubName:
    """ORG/NAME[:CONFIG[:SPLIT]][@REVISION].

    Attributes:
        repo: The data set: ORG/NAME.
        config: Which of its configurations; None: the default one.
        split: Which split, alone; None: the training and the held-out one.
        revision: Branch, tag or commit; None: the newest.
    """

    repo: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        parts = [self.repo]
        if self.config or self.split:
            parts.append(f":{self.config or ''}")
        parts += [f":{self.split}"] if self.split else []
        return "".join([*parts, f"@{self.revision}" if self.revision else ""])

    @property
    def is_commit(self) -> bool:
        """Whether the revision is a whole commit, which never means another one."""
        return re.fullmatch(r"[0-9a-f]{40}", self.revision or "") is not None


def parse(text: str) -> HubName | None:
    """Parse a name; None where the text is none."""
    found = _SHAPE.fullmatch(text)
    if found is None or _FILE.search(found["repo"]) or ".." in found["repo"]:
        return None
    return HubName(found["repo"], found["config"] or None, found["split"], found["revision"])


def read_name(path: Path) -> HubName | None:
    """Return the name that a path is, if nothing is there, nor a folder that it would lie in."""
    if path.is_absolute() or os.path.lexists(path) or os.path.lexists(path.parts[0]):
        return None
    return parse(str(path))


def names_in(paths: Iterable[Path]) -> dict[Path, HubName]:
    """Find the paths that are names."""
    return {path: name for path in paths if (name := read_name(path)) is not None}


def store(output: Path) -> Path:
    """Return the folder that data sets of the hub are kept in, for a run and those beside it."""
    return output.parent / ".cache" / "hub"
