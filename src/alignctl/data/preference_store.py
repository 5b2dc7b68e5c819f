"""Prepared preferences on disk: their summary, and batches of whole groups out of them."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from alignctl.data.batch import Document, PreferenceBatch, count_computed, with_every_token_an_input
from alignctl.data.order import Share, share_out
from alignctl.data.preference_documents import DROPPED
from alignctl.data.store import (
    NO_EOS,
    PARTED,
    Prepared,
    Split,
    StoredSummary,
    origin_arrays,
    read_array,
    read_summary,
    split_arrays,
    unread_notes,
)


@dataclass(frozen=True)
class PreferenceSplitSummary:
    """What one split holds.

    Attributes:
        groups: Prompts with their answers.
        documents: Answers.
        pairs: Pairs of a better and a worse answer to one prompt.
        tokens: Tokens of all documents, the prompt counted once per answer.
        answer_tokens: Tokens of the answers alone.
        shared_tokens: Tokens that are not computed where answers to a prompt share what they begin
            with; 0 also where an earlier version did not count them.
    """

    groups: int
    documents: int
    pairs: int
    tokens: int
    answer_tokens: int
    shared_tokens: int = 0

    @property
    def sequences(self) -> int:
        """Sequences: each is a group."""
        return self.groups


@dataclass(frozen=True)
class PreferenceSummary(StoredSummary):
    """What became of the rows.

    Attributes:
        rows: Rows read, training and validation files together: those kept and those dropped.
        truncated: Groups that were cut because a document exceeded seq_length tokens.
        without_eos: Answers that do not end with EOS (cut off, or the template writes none).
        dropped: Rows left out, by the keys of `DROPPED`.
        files: The files read; documents refer to them by number.
        train: The training split.
        validation: The held-out split, or None.
        parted: Answers that would have changed the tokens of their prompts.
        unread: How many rows have each key that nothing reads, by file.
        sources: Of a blend, what each source has of the training split; else none.
    """

    rows: int
    truncated: int
    without_eos: int
    dropped: dict[str, int]
    files: tuple[str, ...]
    train: PreferenceSplitSummary
    validation: PreferenceSplitSummary | None
    parted: int = 0
    unread: dict[str, dict[str, int]] = field(default_factory=dict)
    sources: tuple[PreferenceSplitSummary, ...] = ()

    def describe(self) -> str:
        """Say in one line what became of the rows, and in others what the user should know."""
        counts = [f"{self.rows:,} rows"]
        if self.truncated:
            counts.append(f"{self.truncated:,} truncated")
        counts += [
            f"{number:,} dropped: {DROPPED[reason]}"
            for reason, number in self.dropped.items()
            if number
        ]
        if self.without_eos:
            counts.append(f"{self.without_eos:,} answers without EOS")
        if self.parted:
            counts.append(f"{self.parted:,} answers {PARTED}")
        train = self.train
        held_out = self.validation.groups if self.validation else 0
        line = (
            f"data: {', '.join(counts)}; {train.groups:,} prompts to train on, {held_out:,} held "
            f"out; {train.documents:,} answers, {train.pairs:,} pairs; "
            f"{train.answer_tokens:,} of {train.tokens:,} tokens are answers"
        )
        notes = unread_notes(self.unread)
        held_out_answers = self.validation.documents if self.validation else 0
        if self.without_eos == train.documents + held_out_answers:
            notes.append(NO_EOS)
        return "\n".join([line, *notes])


@dataclass(frozen=True, eq=False)
class PreferenceSplit(Split):
    """A split whose sequences are groups, so that no rank and no micro batch sees part of one.

    Attributes:
        scores: How good each document's answer is `[D]`.
        share_prompts: Whether what the answers to a prompt begin with is computed once.
    """

    scores: NDArray[np.float64]
    share_prompts: bool = False

    @cached_property
    def sequence_tokens(self) -> NDArray[np.int64]:
        """Input tokens of each group `[S]`: all tokens of its documents."""
        return np.add.reduceat(np.diff(self.offsets)[self.members], self.bounds[:-1])

    @override
    def lengths(self, sequences: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the input tokens to compute for some groups, in the shape of their numbers."""
        if not self.share_prompts:
            return super().lengths(sequences)
        groups = [self._answers(group) for group in sequences.ravel().tolist()]
        counted = [
            count_computed([with_every_token_an_input(self.document(number)) for number in group])
            for group in groups
        ]
        return np.asarray(counted, np.int64).reshape(sequences.shape)

    def batch(self, sequences: Iterable[int]) -> PreferenceBatch:
        """Build one micro batch of whole groups; of none: a filler."""
        groups = [self._answers(group) for group in sequences]
        return PreferenceBatch.from_groups(
            [[self.document(number) for number in group] for group in groups],
            np.asarray([self.scores[number] for group in groups for number in group], np.float64),
            share_prompts=self.share_prompts,
        )

    def _answers(self, group: int) -> list[int]:
        """List the document numbers of the answers to a prompt."""
        numbers: list[int] = self.members[self.bounds[group] : self.bounds[group + 1]].tolist()
        return numbers

    def first_pair(self) -> dict[str, Document]:
        """Return the best and the worst answer to the first prompt, by what they are called."""
        answers = sorted(self._answers(0), key=lambda number: -self.scores[number])
        return {"better": self.document(answers[0]), "worse": self.document(answers[-1])}

    def best_answers(self) -> Self:
        """Return the best answer alone to each prompt: a group of one; of equals the first."""
        scores = self.scores[self.members]
        best = [
            self.members[start + int(np.argmax(scores[start:end]))]
            for start, end in pairwise(self.bounds.tolist())
        ]
        return replace(self, members=np.asarray(best), bounds=np.arange(len(best) + 1))


@dataclass(frozen=True, eq=False, kw_only=True)
class PreferenceData(Prepared):
    """A folder that `preferences.prepare` wrote.

    Attributes:
        train: Training groups.
        validation: Held-out groups, or None.
    """

    summary: PreferenceSummary
    train: PreferenceSplit
    validation: PreferenceSplit | None

    @classmethod
    def open(
        cls, folder: Path, weights: Collection[float] = (), *, share_prompts: bool = False
    ) -> Self:
        """Map the arrays of a prepared folder into memory.

        Args:
            folder: The folder.
            weights: Of the sources, where it is of a blend and to be taken in its order.
            share_prompts: Whether what the answers to a prompt begin with is computed once.
        """
        summary = PreferenceSummary.from_json(read_summary(folder))

        sizes = [source.sequences for source in summary.sources]

        def split(name: str, shares: tuple[Share, ...] = ()) -> PreferenceSplit:
            return PreferenceSplit(
                **split_arrays(folder, name),
                scores=read_array(folder / "scores.npy"),
                share_prompts=share_prompts,
                shares=shares,
            )

        return cls(
            folder=folder,
            summary=summary,
            train=split("train", share_out(sizes, weights)),
            validation=split("validation") if summary.validation else None,
            **origin_arrays(folder),
        )

    @property
    def num_documents(self) -> int:
        """Documents D of both splits: `PreferenceBatch.rows` are numbers below it."""
        return len(self.lines)
