"""What every preparation of data shares: its files, its folder, and who is held out.

The folder is named by a hash of all that decides its content, so a second run with the same files,
tokenizer and settings finds it ready. It is written beside its place, synced and renamed. One
process writes into `out_dir` at a time; the run folder's lock sees to that.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
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
        train: Files of training rows, by the path that means them: of a blend several.
        held_out: Files of held-out rows, by such a path; none when they are a share of the training
            rows, or when nothing is held out.
    """

    train: dict[Path, list[Path]]
    held_out: dict[Path, list[Path]]

    @property
    def groups(self) -> list[list[Path]]:
        """Files that are read together, with rows of one kind: those to train on come first."""
        return [*self.train.values(), *self.held_out.values()]

    @property
    def files(self) -> list[Path]:
        """All files, in the order in which documents refer to them by number."""
        return [file for group in self.groups for file in group]

    @property
    def names(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(map(str, self.files))


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
    files of training folders; `validation_fraction` of the training rows.

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
    sources = _find_sources(settings)
    key, total = _content_key(settings, state, sources)
    folder = out_dir / key
    if folder.is_dir():
        return folder
    partial = out_dir / f".{key}.partial"
    with explain_errors(out_dir), atomic.fill_folder(partial, folder):
        write(partial, sources, _counter(total, on_progress))
    return folder


def _find_sources(settings: Rows) -> Sources:
    """Find the files to read, each of them once."""
    train = {path: find_files(path, "train") for path in settings.weights}
    if not train:
        raise UserError("no training data is given", "add --data FILE_OR_FOLDER")
    seen: dict[Path, Path] = {}
    for path, files in train.items():
        for file in files:
            before = seen.setdefault(file.resolve(), path)
            if before != path:
                raise UserError(
                    f"data.blend: {before} and {path} have the same file, {file}",
                    "give each file one weight",
                )
    if (given := settings.validation) is not None:
        held_out = {given: find_files(given, "validation") or find_files(given, "train")}
    else:
        folders = [path for path in train if not path.is_file()]
        found = {path: find_files(path, "validation") for path in folders}
        held_out = {path: files for path, files in found.items() if files}
    return Sources(train, held_out)


def _content_key(
    settings: Rows, state: Mapping[str, object], sources: Sources
) -> tuple[str, int | None]:
    """Compute the folder's name; count the rows if all files are plain JSON lines, else None."""
    total: int | None = 0
    hashes: tuple[list[list[str]], list[list[str]]] = ([], [])
    for place, files in enumerate(sources.groups):
        found = hashes[place >= len(sources.train)]
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
    if len(sources.train) > 1:  # others keep the name that they have always had
        everything["blend"] = [len(files) for files in sources.train.values()]
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


def divide(
    sources: Sources, counts: Sequence[int], hashes: NDArray[np.uint64], fraction: float
) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Divide the entries of a preparation, such as documents, into those trained on and the others.

    Args:
        sources: The files.
        counts: Entries of each group of files.
        hashes: A hash of the text of each entry.
        fraction: `data.validation_fraction`, which acts where no file is held out.

    Returns:
        Numbers of the entries to train on, source by source; and of those held out.

    Raises:
        UserError: Of a source, or of all, nothing is left to train on.
    """
    ends = np.cumsum(counts[: len(sources.train)])
    is_held_out = np.arange(len(hashes)) >= ends[-1]
    if not sources.held_out and fraction > 0:
        is_held_out = choose_held_out(hashes, fraction)
    train = np.flatnonzero(~is_held_out)
    parts = np.split(train, np.searchsorted(train, ends[:-1]))
    for path, count, part in zip(sources.train, counts, parts, strict=False):
        if not len(part):
            raise UserError(
                f"data.blend: data.validation_fraction={fraction} holds out all that {path} has, "
                f"which is {count}",
                "lower it, or give a validation file: data.validation=FILE",
            )
    return parts, np.flatnonzero(is_held_out)


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
