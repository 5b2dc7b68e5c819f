"""Preparation of supervised data: files of rows to a folder of memory-mapped token arrays.

The folder is named by a hash of all that decides its content, so a second run with the same files,
tokenizer and settings finds it ready. It is written beside its place, synced and renamed. One
process writes into `out_dir` at a time; the run folder's lock sees to that.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from alignctl import atomic
from alignctl.data.documents import DocumentWriter, Progress, Recipe, Tally, stream
from alignctl.data.files import find_files
from alignctl.data.masks import Truncation
from alignctl.data.packing import pack, starts
from alignctl.data.store import SplitSummary, Summary, explained, write_array
from alignctl.data.templates import Choice, renderer
from alignctl.data.tokenizer import Tokenizer
from alignctl.errors import UserError

FORMAT = 1
"""Part of the content key; raised when the same rows would give other arrays."""


class DataSettings(Protocol):
    """The settings of `data.*` that decide the content."""

    @property
    def train(self) -> Path | None:
        """File or folder of training rows."""

    @property
    def validation(self) -> Path | None:
        """File or folder of held-out rows."""

    @property
    def validation_fraction(self) -> float:
        """Share of the training documents held out when there is no validation file."""

    @property
    def packing(self) -> bool:
        """Whether several documents share a sequence."""

    @property
    def template(self) -> Choice:
        """How conversations are written."""

    @property
    def truncation(self) -> Truncation:
        """What is cut from documents that are too long."""


def prepare(
    settings: DataSettings,
    seq_length: int,
    tokenizer: Tokenizer,
    out_dir: Path,
    on_progress: Progress | None = None,
) -> Path:
    """Tokenises, masks, truncates, packs and stores the rows, unless that was done before.

    Held out for validation are, in this order of preference: `settings.validation`; the validation
    file of a training folder; `validation_fraction` of the training documents, chosen by a hash of
    their text, so that they are always the same ones and a text never is on both sides.

    Args:
        settings: The run's data section.
        seq_length: Input tokens of a sequence; a document has at most one token more.
        tokenizer: The tokenizer of the model.
        out_dir: Parent of the prepared folders.
        on_progress: Told about every batch of rows.

    Returns:
        The folder, for `SFTData.open`.

    Raises:
        UserError: For whatever is wrong with files, rows or settings.
        RunError: When the disk is full or cannot be written.
    """
    if settings.train is None:
        raise UserError("no training data is given", "add --data FILE_OR_FOLDER")
    train_files = find_files(settings.train, "train")
    held_out_files = _held_out_files(settings, train_files)
    key, total = _content_key(settings, seq_length, tokenizer, (train_files, held_out_files))
    folder = out_dir / key
    if folder.is_dir():
        return folder
    partial = out_dir / f".{key}.partial"
    try:
        with explained(out_dir):
            shutil.rmtree(partial, ignore_errors=True)  # of a preparation that was killed
            partial.mkdir(parents=True)
            sources = _stream_sources(
                settings,
                seq_length,
                tokenizer,
                (train_files, held_out_files),
                partial,
                _counter(total, on_progress),
            )
            files = tuple(str(file) for file in [*train_files, *held_out_files])
            summary = _write_splits(settings, seq_length, sources, files, partial)
            (partial / "summary.json").write_text(summary.to_json(), encoding="utf-8")
            atomic.commit_folder(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder


def _held_out_files(settings: DataSettings, train_files: list[Path]) -> list[Path]:
    if settings.validation is not None:
        files = find_files(settings.validation, "validation")
        return files or find_files(settings.validation, "train")
    assert settings.train is not None
    return [] if settings.train.is_file() else find_files(settings.train, "validation")


def _content_key(
    settings: DataSettings,
    seq_length: int,
    tokenizer: Tokenizer,
    sources: tuple[list[Path], list[Path]],
) -> tuple[str, int | None]:
    """The folder's name; and the number of rows when all files are plain JSON lines."""
    total: int | None = 0
    hashes: tuple[list[list[str]], list[list[str]]] = ([], [])
    for files, found in zip(sources, hashes, strict=True):
        for file in files:
            digest, lines = _hash_and_count(file)
            # The path counts too: the summary names it.
            found.append([str(file), digest])
            total = total + lines if total is not None and file.suffix == ".jsonl" else None
    state = {
        "format": FORMAT,
        "files": hashes,
        "validation_fraction": 0.0 if sources[1] else settings.validation_fraction,
        "packing": settings.packing,
        "template": settings.template,
        "truncation": settings.truncation,
        "seq_length": seq_length,
        "tokenizer": tokenizer.fingerprint,
    }
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:20], total


def _hash_and_count(file: Path) -> tuple[str, int]:
    digest = hashlib.sha256()
    lines = 0
    last = b"\n"
    try:
        with file.open("rb") as content:
            while chunk := content.read(1 << 20):
                digest.update(chunk)
                lines += chunk.count(b"\n")
                last = chunk[-1:]
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


def _stream_sources(
    settings: DataSettings,
    seq_length: int,
    tokenizer: Tokenizer,
    sources: tuple[list[Path], list[Path]],
    folder: Path,
    on_rows: Callable[[int], None],
) -> tuple[Tally, Tally]:
    """Writes the documents of the training files, then those of the validation files."""
    train_files, held_out_files = sources
    recipe = Recipe(
        render=renderer(settings.template, tokenizer),
        tokenizer=tokenizer,
        truncation=settings.truncation,
        window=seq_length + 1,
    )
    with DocumentWriter(folder, [*train_files, *held_out_files]) as writer:
        train = stream(train_files, recipe, writer, on_rows)
        held_out = stream(held_out_files, recipe, writer, on_rows)
    for files, tally in ((train_files, train), (held_out_files, held_out)):
        if files and not tally.documents:
            raise UserError(
                f"{', '.join(str(file) for file in files)}: nothing to learn from: "
                f"{tally.in_words()}",
                "rows need an assistant turn (HH text: a turn that starts with '\\n\\nAssistant:')",
            )
    return train, held_out


def _write_splits(
    settings: DataSettings,
    seq_length: int,
    sources: tuple[Tally, Tally],
    files: tuple[str, ...],
    folder: Path,
) -> Summary:
    train, held_out = sources
    lengths = np.concatenate([*train.lengths, *held_out.lengths])
    targets = np.concatenate([*train.targets, *held_out.targets])
    write_array(folder / "offsets.npy", starts(lengths + 1))

    def write(name: str, documents: NDArray[np.int64]) -> SplitSummary:
        order, bounds = np.arange(len(documents)), np.arange(len(documents) + 1)
        if settings.packing:
            order, bounds = pack(lengths[documents], seq_length)
        write_array(folder / f"{name}_members.npy", documents[order])
        write_array(folder / f"{name}_bounds.npy", bounds)
        tokens, sequences = int(lengths[documents].sum()), len(bounds) - 1
        return SplitSummary(
            documents=len(documents),
            sequences=sequences,
            tokens=tokens,
            supervised_tokens=int(targets[documents].sum()),
            efficiency=tokens / (sequences * seq_length),
        )

    is_held_out = np.arange(len(lengths)) >= train.documents
    if not held_out.documents and settings.validation_fraction > 0:
        is_held_out = _chosen(np.concatenate(train.text_hashes), settings)
    return Summary(
        rows=train.rows + held_out.rows,
        truncated=train.truncated + held_out.truncated,
        dropped_no_target=train.no_target + held_out.no_target,
        dropped_too_long=train.too_long + held_out.too_long,
        without_eos=train.without_eos + held_out.without_eos,
        files=files,
        train=write("train", np.flatnonzero(~is_held_out)),
        validation=(
            write("validation", np.flatnonzero(is_held_out)) if is_held_out.any() else None
        ),
    )


def _chosen(hashes: NDArray[np.uint64], settings: DataSettings) -> NDArray[np.bool_]:
    """Which documents are held out: those with the smallest hashes, equal texts together."""
    wanted = max(1, round(settings.validation_fraction * len(hashes)))
    is_held_out: NDArray[np.bool_] = hashes <= np.partition(hashes, wanted - 1)[wanted - 1]
    if is_held_out.all():
        raise UserError(
            f"data.validation_fraction={settings.validation_fraction} of {len(hashes)} documents "
            "leaves nothing to train on",
            "lower it, or give a validation file: data.validation=FILE",
        )
    return is_held_out
