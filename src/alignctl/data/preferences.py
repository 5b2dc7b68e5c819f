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
from alignctl.data.preparation import Sources, choose_held_out, prepare_folder
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
        train, held_out = _stream_sources(settings, seq_length, tokenizer, sources, folder, on_rows)
        fraction = 0.0 if sources.held_out else settings.validation_fraction
        summary = _write_splits((train, held_out), fraction, sources.names, folder)
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
) -> tuple[PreferenceTally, PreferenceTally]:
    """Write the groups of the training files, then those of the validation files."""
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
        DocumentWriter(folder, [*sources.train, *sources.held_out]) as writer,
        closing(ArrayWriter(folder / "scores.npy", np.float64)) as scores,
    ):
        train = stream(sources.train, recipe, writer, scores, on_rows)
        held_out = stream(sources.held_out, recipe, writer, scores, on_rows)
    for files, tally in ((sources.train, train), (sources.held_out, held_out)):
        if files and not tally.groups:
            raise UserError(
                f"{', '.join(str(file) for file in files)}: nothing to compare: {tally.in_words()}",
                "rows need two different answers to one prompt, one of them better",
            )
    return train, held_out


def _write_splits(
    tallies: tuple[PreferenceTally, PreferenceTally],
    fraction: float,
    files: tuple[str, ...],
    folder: Path,
) -> PreferenceSummary:
    train, held_out = tallies
    lengths, targets, sizes, pairs, shared = (
        np.concatenate([*of_train, *of_held_out])
        for of_train, of_held_out in (
            (train.lengths, held_out.lengths),
            (train.targets, held_out.targets),
            (train.sizes, held_out.sizes),
            (train.pairs, held_out.pairs),
            (train.shared, held_out.shared),
        )
    )
    write_array(folder / "offsets.npy", starts(lengths))
    first = starts(sizes)

    def write(name: str, groups: NDArray[np.int64]) -> PreferenceSplitSummary:
        documents = np.concatenate([np.arange(first[g], first[g + 1]) for g in groups.tolist()])
        write_array(folder / f"{name}_members.npy", documents)
        write_array(folder / f"{name}_bounds.npy", starts(sizes[groups]))
        return PreferenceSplitSummary(
            groups=len(groups),
            documents=len(documents),
            pairs=int(pairs[groups].sum()),
            tokens=int(lengths[documents].sum()),
            answer_tokens=int(targets[documents].sum()),
            shared_tokens=int(shared[groups].sum()),
        )

    is_held_out = np.arange(len(sizes)) >= train.groups
    if fraction > 0:
        is_held_out = choose_held_out(np.concatenate(train.prompt_hashes), fraction)
    return PreferenceSummary(
        rows=train.rows + held_out.rows,
        truncated=train.truncated + held_out.truncated,
        without_eos=train.without_eos + held_out.without_eos,
        dropped={reason: train.dropped[reason] + held_out.dropped[reason] for reason in DROPPED},
        parted=train.parted + held_out.parted,
        unread=train.unread.counts() | held_out.unread.counts(),
        files=files,
        train=write("train", np.flatnonzero(~is_held_out)),
        validation=(
            write("validation", np.flatnonzero(is_held_out)) if is_held_out.any() else None
        ),
    )
