"""Preparation of supervised data: files of rows to a folder of memory-mapped token arrays."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignctl.config.data import Data
from alignctl.data.documents import DocumentWriter, Progress, Recipe, Tally, stream
from alignctl.data.packing import pack, starts
from alignctl.data.preparation import Sources, choose_held_out, prepare_folder
from alignctl.data.store import SplitSummary, Summary, write_array
from alignctl.data.text.templates import Renderer
from alignctl.data.tokenizer import Tokenizer
from alignctl.errors import UserError

FORMAT = 2
"""Part of the content key; raised when the same rows would give other arrays."""


def prepare(
    settings: Data,
    seq_length: int,
    tokenizer: Tokenizer,
    out_dir: Path,
    on_progress: Progress | None = None,
) -> Path:
    """Tokenise, mask, truncate, pack and store the rows, unless that was done before.

    Held out for validation is what `prepare_folder` says; a share of the training documents is
    chosen by a hash of their text, so that they are always the same ones and a text never is on
    both sides.

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

    def write(folder: Path, sources: Sources, on_rows: Callable[[int], None]) -> None:
        train, held_out = _stream_sources(settings, seq_length, tokenizer, sources, folder, on_rows)
        summary = _write_splits(settings, seq_length, (train, held_out), sources.names, folder)
        (folder / "summary.json").write_text(summary.to_json(), encoding="utf-8")

    state = {
        "format": FORMAT,
        "packing": settings.packing == "all",
        "seq_length": seq_length,
        "tokenizer": tokenizer.fingerprint,
        "truncation": settings.truncation,
    }
    return prepare_folder(settings, state, out_dir, write, on_progress)


def _stream_sources(
    settings: Data,
    seq_length: int,
    tokenizer: Tokenizer,
    sources: Sources,
    folder: Path,
    on_rows: Callable[[int], None],
) -> tuple[Tally, Tally]:
    """Write the documents of the training files, then those of the validation files."""
    recipe = Recipe(
        render=Renderer(settings.template, tokenizer),
        tokenizer=tokenizer,
        truncation=settings.truncation,
        window=seq_length + 1,
    )
    with DocumentWriter(folder, [*sources.train, *sources.held_out]) as writer:
        train = stream(sources.train, recipe, writer, on_rows)
        held_out = stream(sources.held_out, recipe, writer, on_rows)
    for files, tally in ((sources.train, train), (sources.held_out, held_out)):
        if files and not tally.documents:
            raise UserError(
                f"{', '.join(str(file) for file in files)}: nothing to learn from: "
                f"{tally.in_words()}",
                "rows need an assistant turn (HH text: a turn that starts with '\\n\\nAssistant:')",
            )
    return train, held_out


def _write_splits(
    settings: Data,
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
        if settings.packing == "all":
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
        is_held_out = choose_held_out(
            np.concatenate(train.text_hashes), settings.validation_fraction
        )
    return Summary(
        rows=train.rows + held_out.rows,
        truncated=train.truncated + held_out.truncated,
        dropped_no_target=train.no_target + held_out.no_target,
        dropped_too_long=train.too_long + held_out.too_long,
        without_eos=train.without_eos + held_out.without_eos,
        parted=train.parted + held_out.parted,
        divided=train.divided + held_out.divided,
        unread=train.unread.counts() | held_out.unread.counts(),
        files=files,
        train=write("train", np.flatnonzero(~is_held_out)),
        validation=(
            write("validation", np.flatnonzero(is_held_out)) if is_held_out.any() else None
        ),
    )
