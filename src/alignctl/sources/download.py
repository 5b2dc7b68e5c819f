"""Where a data set lies: files and folders as downloaded, or the Hugging Face hub."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from alignctl import console, user_files
from alignctl.data.rows.files import SUFFIXES, Role, Row, find_files, read_rows
from alignctl.errors import RunError, UserError

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# hh-rlhf has conversations of attackers, of another schema; gsm8k its solutions a second time.
_NOT_READ = ("red-team-attempts", "socratic")


def locate(given: str, hub: str) -> Path:
    """Return the path that was given, or download its name from the hub and return that folder.

    Args:
        given: A file, a folder, or a name such as `openai/gsm8k`.
        hub: The data set's name on the hub, for messages.

    Raises:
        UserError: It is no path, and no name.
        RunError: The hub cannot be reached, or does not have it.
    """
    path = Path(given)
    if path.exists():
        return path
    if not _HUB_NAME.fullmatch(given) or given.endswith(SUFFIXES):
        raise UserError(
            f"{given}: no such file or folder", f"give one, or a name on the hub such as {hub}"
        )
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # read when it is imported
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    console.say(f"{given}: no such folder here; looking on the Hugging Face hub")
    patterns = ["README.md", *(f"*{suffix}" for suffix in SUFFIXES)]
    try:
        return Path(snapshot_download(given, repo_type="dataset", allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(
            f"{given}: neither a folder here nor to be had from the hub: {reason}",
            f"download it where there is a network, and give the folder: "
            f"hf download --repo-type dataset {given} --local-dir DIR",
        ) from error


def files_of(paths: Sequence[Path], role: Role) -> list[Path]:
    """Find the files of training or of held-out rows below some paths, at any depth."""
    files: list[Path] = []
    for path in paths:
        if path.is_file():
            files += find_files(path, "train") if role == "train" else []
            continue
        below = sorted(entry for entry in path.rglob("*") if entry.is_dir())
        for folder in (path, *below):
            if _is_read(folder.relative_to(path)) and _holds_data(folder):
                files += _in_folder(folder, path, role)
    return files


def _is_read(place: Path) -> bool:
    parts = place.parts
    return not any(part.startswith(".") or part in _NOT_READ for part in parts)


def _holds_data(folder: Path) -> bool:
    return any(entry.is_file() and entry.name.endswith(SUFFIXES) for entry in folder.iterdir())


def _in_folder(folder: Path, top: Path, role: Role) -> list[Path]:
    """Find the files of a role in a folder; below MATH's `train` and `test` all are of one role."""
    held_out = {"test", "dev", "validation"} & set(folder.relative_to(top.parent).parts)
    if held_out or "train" in folder.relative_to(top.parent).parts:
        wanted = role == "validation" if held_out else role == "train"
        entries = [entry for entry in folder.iterdir() if entry.name.endswith(SUFFIXES)]
        return sorted(entries) if wanted else []
    if role == "train" and not _has_training_rows(folder):
        return []
    return find_files(folder, role)


def _has_training_rows(folder: Path) -> bool:
    held_out = set(find_files(folder, "validation"))
    entries = {entry for entry in folder.iterdir() if entry.name.endswith(SUFFIXES)}
    return bool(entries - held_out)


def rows_of(files: Sequence[Path]) -> Iterator[Row]:
    """Read the rows of files; a `.json` file may be one object over many lines, as MATH's are."""
    for file in files:
        record = _single_object(file) if file.suffix == ".json" else None
        if record is not None:
            yield Row(file, 1, record)
        else:
            yield from read_rows([file])


def _single_object(file: Path) -> dict[str, object] | None:
    if file.stat().st_size > 1 << 20:
        return None
    try:
        value = json.loads(file.read_bytes())
    except ValueError:
        return None  # JSON lines under another name; what is wrong otherwise, the reader tells
    return value if isinstance(value, dict) else None


def license_of(paths: Sequence[Path]) -> str | None:
    """Read the licence that a data card (README.md of a download) names."""
    for path in paths:
        folder = path if path.is_dir() else path.parent
        for parent in (folder, folder.parent):
            if (card := parent / "README.md").is_file():
                text = user_files.read_bytes(card).decode("utf-8", "replace")
                head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
                told = head and re.search(r"^license:(.*(?:\n[ \t]*- .*)*)", head[1], re.MULTILINE)
                return ", ".join(re.findall(r"\w[\w.+-]*", told[1])) or None if told else None
    return None
