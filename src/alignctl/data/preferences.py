"""Preparation of preferences: files of rows to a folder of memory-mapped groups of answers."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignctl.config.data import Preferences
from alignctl.data.documents import DocumentWriter, Progress, Recipe
from alignctl.data.packing import starts
from alignctl.data.preference_documents import (
    DROPPED,
    PreferenceRecipe,
    PreferenceTally,
    stream,
)
from alignctl.data.preference_store import PreferenceSplitSummary, PreferenceSummary
from alignctl.data.preparation import Sources, divide, prepare_folder
from alignctl.data.store import ArrayWriter, write_array
from alignctl.data.text.templates import Renderer
from alignctl.data.tokenizer import Tokenizer
from alignctl.errors import UserError

FORMAT = 2
"""Part of the content key; raised when the same rows would give other arrays."""


def prepare(
    settings: Preferences,
    seq_length: int,
    tokenizer: Tokenizer,
    out_dir: Path,
    on_progress: Progress | None = None,
) -> Path:
    """Select, tokenise, mask, truncate and store the rows, unless that was done before.

    Held out for validation is what `prepare_folder` says; a share of the training rows is chosen
    by a hash of their prompts, so that a prompt never is on both sides.

    Args:
        settings: The run's data section.
        seq_length: Most tokens of a prompt with one answer, EOS included.
        tokenizer: The tokenizer of the model.
        out_dir: Parent of the prepared folders.
        on_progress: Told about every batch of rows.

    Returns:
        The folder, for `PreferenceData.open`.

    Raises:
        UserError: For whatever is wrong with files, rows or settings.
        RunError: When the disk is full or cannot be written.
    """

    def write(folder: Path, sources: Sources, on_rows: Callable[[int], None]) -> None:
        tallies = _stream_sources(settings, seq_length, tokenizer, sources, folder, on_rows)
        summary = _write_splits(tallies, settings.validation_fraction, sources, folder)
        (folder / "summary.json").write_text(summary.to_json(), encoding="utf-8")

    state = {
        "kind": "preferences",
        "format": FORMAT,
        "max_response": settings.max_response,
        "select": settings.select,
        "seq_length": seq_length,
        "tokenizer": tokenizer.fingerprint,
        "truncation": settings.truncation,
    }
    return prepare_folder(settings, state, out_dir, write, on_progress)


def _stream_sources(
    settings: Preferences,
    seq_length: int,
    tokenizer: Tokenizer,
    sources: Sources,
    folder: Path,
    on_rows: Callable[[int], None],
) -> list[PreferenceTally]:
    """Write the groups of the training files, source by source, then of the validation files."""
    recipe = PreferenceRecipe(
        document=Recipe(
            render=Renderer(settings.template, tokenizer),
            tokenizer=tokenizer,
            truncation=settings.truncation,
            window=seq_length,
        ),
        max_response=settings.max_response,
        select=settings.select,
    )
    with (
        DocumentWriter(folder, sources.files) as writer,
        closing(ArrayWriter(folder / "scores.npy", np.float64)) as scores,
    ):
        tallies = [stream(files, recipe, writer, scores, on_rows) for files in sources.groups]
    for files, tally in zip(sources.groups, tallies, strict=True):
        if not tally.groups:
            raise UserError(
                f"{', '.join(str(file) for file in files)}: nothing to compare: {tally.in_words()}",
                "rows need two different answers to one prompt, one of them better",
            )
    return tallies


def _write_splits(
    tallies: list[PreferenceTally], fraction: float, sources: Sources, folder: Path
) -> PreferenceSummary:
    lengths, targets, sizes, pairs, shared = (
        np.concatenate([part for tally in tallies for part in getattr(tally, name)])
        for name in ("lengths", "targets", "sizes", "pairs", "shared")
    )
    write_array(folder / "offsets.npy", starts(lengths))
    first = starts(sizes)
    train, held_out = divide(
        sources,
        [tally.groups for tally in tallies],
        np.concatenate([part for tally in tallies for part in tally.prompt_hashes]),
        fraction,
    )

    def documents_of(groups: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.concatenate([np.arange(first[g], first[g + 1]) for g in groups.tolist()])

    def summarise(groups: NDArray[np.int64]) -> PreferenceSplitSummary:
        documents = documents_of(groups)
        return PreferenceSplitSummary(
            groups=len(groups),
            documents=len(documents),
            pairs=int(pairs[groups].sum()),
            tokens=int(lengths[documents].sum()),
            answer_tokens=int(targets[documents].sum()),
            shared_tokens=int(shared[groups].sum()),
        )

    def write(name: str, groups: NDArray[np.int64]) -> PreferenceSplitSummary:
        write_array(folder / f"{name}_members.npy", documents_of(groups))
        write_array(folder / f"{name}_bounds.npy", starts(sizes[groups]))
        return summarise(groups)

    return PreferenceSummary(
        rows=sum(tally.rows for tally in tallies),
        truncated=sum(tally.truncated for tally in tallies),
        without_eos=sum(tally.without_eos for tally in tallies),
        dropped={reason: sum(tally.dropped[reason] for tally in tallies) for reason in DROPPED},
        parted=sum(tally.parted for tally in tallies),
        unread={file: keys for tally in tallies for file, keys in tally.unread.counts().items()},
        files=sources.names,
        train=write("train", np.concatenate(train)),
        validation=write("validation", held_out) if len(held_out) else None,
        sources=tuple(map(summarise, train)) if len(train) > 1 else (),
    )
