"""What a command has left in a folder, without what depends on the clock and the machine."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignctl.checkpoints import manifest
from alignctl.errors import AlignctlError
from alignctl.run_folder import RunFolder

_SAVE_ID = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""PyTorch draws one for each save, and writes it into the index of a checkpoint."""

_OF_AN_ATTEMPT = re.compile(
    r"(.*/)?(\.launcher_\d+\.lock|command\.txt|environment\.json|(logs|tensorboard)/.*)"
)
"""What tells of attempts, and so differs where there were two of them."""

_OF_THE_CLOCK = ("time", "seconds", "tokens_per_second", "memory_", "peak_memory")

_MORE = re.compile(r"(.*/)?(checkpoints/iter_\d{7}/.*|state/iter_\d{7}\.json)")
"""What may be there besides: ranks whose launcher was killed save where they are, and leave."""


def content(folder: Path) -> dict[str, str]:
    """Hash every file, by its name in the folder; some files without their times."""
    return {
        name: hashlib.sha256(_bytes(file)).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not _OF_AN_ATTEMPT.fullmatch(name := str(file.relative_to(folder)))
    }


def _bytes(file: Path) -> bytes:
    if file.name == "metrics.jsonl":
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        return _text([_timeless(row) for row in rows if row["kind"] in ("train", "validation")])
    if file.name == manifest.METADATA:
        return _SAVE_ID.sub(b"", file.read_bytes())
    if file.name == manifest.NAME:
        found = json.loads(file.read_text("utf-8"))
        del found["digest"]
        found["files"].get(manifest.METADATA, {}).pop("xxh3", None)
        return _text(found)
    if file.name.endswith(".info.json"):
        found = _timeless(json.loads(file.read_text("utf-8")))
        return _text({key: each for key, each in found.items() if key != "tokens"})
    if file.parent.name == "reference" and file.suffix == ".json":
        return _text(_timeless(json.loads(file.read_text("utf-8"))))
    return file.read_bytes()


def _timeless(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith(_OF_THE_CLOCK)}


def _text(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """List the files that are not the same, or are only here or only there."""
    return sorted(
        name
        for name in ours.keys() | theirs.keys()
        if ours.get(name) != theirs.get(name) and (name in theirs or not _MORE.fullmatch(name))
    )


def false_claims(folder: Path, finished: str, theirs: Mapping[str, str]) -> list[str]:
    """List what a folder says of itself that is not so, in words.

    Args:
        folder: The folder.
        finished: What is in it when all is done.
        theirs: What has to be in it then: see `content`.
    """
    wrong = []
    if (folder / finished).exists():
        ours = content(folder)
        # What is there besides was in use when the command was killed, and is removed later.
        if differing := [name for name in theirs if ours.get(name) != theirs[name]]:
            wrong.append(f"{finished} is there, but these differ: {', '.join(differing)}")
    for checkpoints in folder.rglob("checkpoints"):
        try:
            RunFolder(checkpoints.parent).latest_checkpoint()
            for checkpoint in checkpoints.glob("iter_*"):
                manifest.verify_checksums(checkpoint, manifest.read(checkpoint))
        except AlignctlError as error:
            wrong.append(f"falsely complete: {error}")
    return wrong
