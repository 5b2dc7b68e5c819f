"""What every preparation of data shares: its files, its folder, and who is held out.

The folder is named by a hash of all that decides its content, so a second run with the same files,
tokenizer and settings finds it ready. It is written beside its place, synced and renamed. One
process writes into `out_dir` at a time; the run folder's lock sees to that.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignctl import atomic
from alignctl.config.data import Rows
from alignctl.data.documents import Progress
from alignctl.data.rows.files import check_line, find_files
from alignctl.data.store import explain_errors
from alignctl.errors import UserError
from alignctl.user_files import opened, refuse_hole


@dataclass(frozen=True)
class Sources:
    """The files of a preparation.

    Attributes:
        train: Files of training rows.
        held_out: Files of held-out rows; none when they are a share of the training rows, or when
            nothing is held out.
    """

    train: list[Path]
    held_out: list[Path]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all files, in the order in which documents refer to them by number."""
        return tuple(str(file) for file in [*self.train, *self.held_out])


Write = Callable[[Path, Sources, Callable[[int], None]], None]
"""Writes the arrays and summary.json of some files into a folder; tells the rows of each batch that
is done."""


def prepare_folder(
    settings: Rows,
    state: Mapping[str, object],
    out_dir: Path,
    write: Write,
    on_progress: Progress | None,
) -> Path:
    """Write a folder of prepared data, unless that was done before.

    Held out for validation are, in this order of preference: `settings.validation`; the validation
    file of a training folder; `validation_fraction` of the training rows.

    Args:
        settings: The run's data section.
        state: What decides the content besides the files and the settings above.
        out_dir: Parent of the prepared folders.
        write: Writes the content.
        on_progress: Told about every batch of rows.

    Returns:
        The folder.

    Raises:
        UserError: For whatever is wrong with files, rows or settings.
        RunError: When the disk is full or cannot be written.
    """
    if settings.train is None:
        raise UserError("no training data is given", "add --data FILE_OR_FOLDER")
    train = find_files(settings.train, "train")
    sources = Sources(train, _held_out_files(settings.train, settings.validation))
    key, total = _content_key(settings, state, sources)
    folder = out_dir / key
    if folder.is_dir():
        return folder
    partial = out_dir / f".{key}.partial"
    with explain_errors(out_dir), atomic.fill_folder(partial, folder):
        write(partial, sources, _counter(total, on_progress))
    return folder


def _held_out_files(train: Path, validation: Path | None) -> list[Path]:
    if validation is not None:
        return find_files(validation, "validation") or find_files(validation, "train")
    return [] if train.is_file() else find_files(train, "validation")


def _content_key(
    settings: Rows, state: Mapping[str, object], sources: Sources
) -> tuple[str, int | None]:
    """Compute the folder's name; count the rows if all files are plain JSON lines, else None."""
    total: int | None = 0
    hashes: tuple[list[list[str]], list[list[str]]] = ([], [])
    for files, found in zip((sources.train, sources.held_out), hashes, strict=True):
        for file in files:
            digest, lines = _hash_and_count(file)
            # The path counts too: the summary names it.
            found.append([str(file), digest])
            total = total + lines if total is not None and file.suffix == ".jsonl" else None
    everything = {
        "files": hashes,
        "validation_fraction": 0.0 if sources.held_out else settings.validation_fraction,
        "template": settings.template,
        **state,
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:20], total


def _hash_and_count(file: Path) -> tuple[str, int]:
    digest = hashlib.sha256()
    lines = length = 0
    last = b"\n"
    try:
        with opened(file) as content:
            if file.suffix != ".jsonl":  # whose lines have a limit
                refuse_hole(file, content)
            while chunk := content.read(1 << 20):
                digest.update(chunk)
                lines += chunk.count(b"\n")
                last = chunk[-1:]
                length = length + len(chunk) if b"\n" not in chunk else 0
                if file.suffix == ".jsonl":  # found before a sparse file is read for hours
                    check_line(file, lines + 1, length)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest(), lines + (last != b"\n")


def _counter(total: int | None, on_progress: Progress | None) -> Callable[[int], None]:
    done = 0

    def count(rows: int) -> None:
        nonlocal done
        done += rows
        if on_progress is not None:
            on_progress(done, total)

    return count


def choose_held_out(hashes: NDArray[np.uint64], fraction: float) -> NDArray[np.bool_]:
    """Choose the documents to hold out: those with the smallest hashes, equal texts together.

    Args:
        hashes: A hash of the text of each document `[N]`.
        fraction: `data.validation_fraction`, above 0.

    Returns:
        True for those held out `[N]`; at least one.
    """
    wanted = max(1, round(fraction * len(hashes)))
    is_held_out: NDArray[np.bool_] = hashes <= np.partition(hashes, wanted - 1)[wanted - 1]
    if is_held_out.all():
        raise UserError(
            f"data.validation_fraction={fraction} of {len(hashes)} documents "
            "leaves nothing to train on",
            "lower it, or give a validation file: data.validation=FILE",
        )
    return is_held_out
