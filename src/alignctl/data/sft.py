"""Preparation of supervised data: files of rows to a folder of memory-mapped token arrays."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignctl.config.data import Data, Packing
from alignctl.data.documents import DocumentWriter, Progress, Recipe, Tally, stream
from alignctl.data.packing import pack, starts
from alignctl.data.preparation import Sources, divide, prepare_folder
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
        tallies = _stream_sources(settings, seq_length, tokenizer, sources, folder, on_rows)
        summary = _write_splits(settings, seq_length, tallies, sources, folder)
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
) -> list[Tally]:
    """Write the documents of the training files, source by source, then of the validation files."""
    recipe = Recipe(
        render=Renderer(settings.template, tokenizer),
        tokenizer=tokenizer,
        truncation=settings.truncation,
        window=seq_length + 1,
    )
    with DocumentWriter(folder, sources.files) as writer:
        tallies = [stream(files, recipe, writer, on_rows) for files in sources.groups]
    for files, tally in zip(sources.groups, tallies, strict=True):
        if not tally.documents:
            raise UserError(
                f"{', '.join(str(file) for file in files)}: nothing to learn from: "
                f"{tally.in_words()}",
                "rows need an assistant turn (HH text: a turn that starts with '\\n\\nAssistant:')",
            )
    return tallies


def _write_splits(
    settings: Data, seq_length: int, tallies: list[Tally], sources: Sources, folder: Path
) -> Summary:
    lengths = np.concatenate([part for tally in tallies for part in tally.lengths])
    targets = np.concatenate([part for tally in tallies for part in tally.targets])
    write_array(folder / "offsets.npy", starts(lengths + 1))
    train, held_out = divide(
        sources,
        [tally.documents for tally in tallies],
        np.concatenate([part for tally in tallies for part in tally.text_hashes]),
        settings.validation_fraction,
    )

    def summarise(members: NDArray[np.int64], sizes: NDArray[np.int64]) -> SplitSummary:
        tokens = int(lengths[members].sum())
        return SplitSummary(
            documents=len(members),
            sequences=len(sizes),
            tokens=tokens,
            supervised_tokens=int(targets[members].sum()),
            efficiency=tokens / (len(sizes) * seq_length),
        )

    def write(name: str, parts: list[NDArray[np.int64]]) -> tuple[SplitSummary, ...]:
        """Write a split, of which no sequence is of two parts; summarise it, and each part."""
        packed = [_pack(part, lengths, seq_length, settings.packing) for part in parts]
        members = np.concatenate([members for members, _ in packed])
        sizes = np.concatenate([sizes for _, sizes in packed])
        write_array(folder / f"{name}_members.npy", members)
        write_array(folder / f"{name}_bounds.npy", starts(sizes))
        return summarise(members, sizes), *(summarise(*each) for each in packed)

    whole, *parts = write("train", train)
    return Summary(
        rows=sum(tally.rows for tally in tallies),
        truncated=sum(tally.truncated for tally in tallies),
        dropped_no_target=sum(tally.no_target for tally in tallies),
        dropped_too_long=sum(tally.too_long for tally in tallies),
        without_eos=sum(tally.without_eos for tally in tallies),
        parted=sum(tally.parted for tally in tallies),
        divided=sum(tally.divided for tally in tallies),
        unread={file: keys for tally in tallies for file, keys in tally.unread.counts().items()},
        files=sources.names,
        train=whole,
        validation=write("validation", [held_out])[0] if len(held_out) else None,
        sources=tuple(parts) if len(parts) > 1 else (),
    )


def _pack(
    documents: NDArray[np.int64], lengths: NDArray[np.int64], seq_length: int, packing: Packing
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lay documents into sequences; return them in that order, and how many each sequence has."""
    if packing != "all":
        return documents, np.ones_like(documents)
    order, bounds = pack(lengths[documents], seq_length)
    return documents[order], np.diff(bounds)
