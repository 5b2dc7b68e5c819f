"""The data files of a folder by the splits that they are of, also where subfolders hold them.

    train.jsonl  dev.jsonl                     our own, and most others'
    data/train-00000-of-00001.parquet          a snapshot of the Hugging Face hub
    datasets--ORG--NAME/snapshots/REV/...      a folder of its cache
    dataset_dict.json  train/data-0.arrow      what `datasets` has saved to disk
    NAME-train.arrow  NAME-test.arrow          a folder of the cache of `datasets`

A split is told by a word of a file's name, or by the name of the subfolder that it lies in.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from alignctl.errors import UserError
from alignctl.user_files import read_text

HELD_OUT = ("validation", "valid", "val", "dev", "eval", "test")
"""Splits that are held out. Of several the first that is there is used: a test set is kept for the
end when there is a development set too."""

_TRAIN = ("train", "training")
# JSON that says what is in the other files.
_ABOUT = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")
_NOT_DATA = (*_ABOUT, "config.json", "manifest.json", "indices.arrow")
_MOST_LEVELS = 5
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")


def files_by_split(folder: Path, suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
    """Find the data files of a folder; only where it has none of its own, those of its subfolders.

    Args:
        folder: The folder; of one of the hub's cache, its newest snapshot is meant.
        suffixes: How the names of data files end.

    Returns:
        Sorted files by split: "train", one of `HELD_OUT`, or "" where no name tells.

    Raises:
        UserError: The subfolders hold several data sets.
        OSError: The folder cannot be read.
    """
    folder = _newest_snapshot(folder)
    found: dict[str, list[Path]] = {}
    files = [name for name in _names(folder) if _is_data(name, suffixes)]
    if files:
        for name in files:
            found.setdefault(_split_of(name), []).append(folder / name)
        return found
    below = sorted(_files_below(folder, suffixes))
    _require_one(folder, below)
    for place in below:
        splits = [part.lower() for part in place.parent.parts if _is_split(part)]
        split = _canonical(splits[-1]) if splits else _split_of(place.name)
        found.setdefault(split, []).append(folder / place)
    return found


def refuse_several(folder: Path, files: list[Path]) -> None:
    """Refuse training files that are shards of splits of several names, such as train_sft.

    Raises:
        UserError: They are.
    """
    shards = (_SHARD.match(file.name) for file in files)
    splits = sorted({shard[1] for shard in shards if shard})
    if len(splits) > 1:
        raise UserError(
            f"{folder}: several splits to train on: {', '.join(splits)}",
            "put the files of one into a folder of their own, by links",
        )


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))


def _is_data(name: str, suffixes: tuple[str, ...]) -> bool:
    """Tell data from what is said of them, and from what `datasets` has computed of them."""
    is_computed = name.endswith(".arrow") and name.startswith(("cache-", "tmp"))
    return name.endswith(suffixes) and name not in _NOT_DATA and not is_computed


def _newest_snapshot(folder: Path) -> Path:
    """Return the snapshot that a folder of the hub's cache stands for; others as they are."""
    snapshots, main = folder / "snapshots", folder / "refs" / "main"
    if not (snapshots.is_dir() and main.parent.is_dir()):
        return folder
    there = _names(snapshots)
    wanted = read_text(main, 1000).strip() if main.is_file() else None
    if wanted in there:
        return snapshots / wanted
    if wanted is None and len(there) == 1:
        return snapshots / there[0]
    raise UserError(
        f"{folder}: a folder of the hub's cache, whose refs/main names no snapshot that is here",
        f"give one: {', '.join(str(snapshots / name) for name in there)}"
        if there
        else "download the data set again",
    )


def _files_below(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Yield the places of data files in subfolders, relative to the folder."""
    for parent, folders, files in os.walk(folder, onerror=_fail):
        place = Path(parent).relative_to(folder)
        if len(place.parts) == _MOST_LEVELS:
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        for name in files:
            if not name.startswith(".") and _is_data(name, suffixes):
                yield place / name


def _fail(error: OSError) -> NoReturn:
    raise error


def _require_one(folder: Path, files: list[Path]) -> None:
    """Refuse the files of several data sets: of subfolders that are not named after splits."""
    places: dict[tuple[str, ...], Path] = {}
    for parent in (file.parent for file in files):
        place = parent
        while place.name and _is_split(place.name):
            place = place.parent
        places.setdefault(tuple(part for part in parent.parts if not _is_split(part)), place)
    if len(places) > 1:
        names = ["/".join(parts) or "." for parts in places]
        raise UserError(
            f"{folder}: several data sets are in it: {', '.join(names[:8])}"
            f"{', ...' if len(names) > 8 else ''}",
            f"give the subfolder of one, such as {folder / list(places.values())[-1]}",
        )


def _is_split(name: str) -> bool:
    return name.lower() in (*_TRAIN, *HELD_OUT)


def _canonical(word: str) -> str:
    return "train" if word in _TRAIN else word


def _split_of(name: str) -> str:
    """Read the split out of a file's name: its first word, or else the last that is one."""
    words = re.findall(r"[a-z]+", name.lower())
    splits = [word for word in words if _is_split(word)]
    first = words[:1] if words and _is_split(words[0]) else splits[-1:]
    return _canonical(first[0]) if first else ""
