"""Prepared prompts on disk: their summary, and prompts by number."""

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from alignctl.data.order import Share, share_out
from alignctl.data.store import (
    Prepared,
    StoredSummary,
    origin_arrays,
    read_array,
    read_summary,
    unread_notes,
)


@dataclass(frozen=True)
class PromptSummary(StoredSummary):
    """What became of the rows.

    Attributes:
        rows: Rows read, training and validation files together.
        dropped: Rows left out because their prompt is too long.
        cut: Prompts that lost their start because they were too long.
        with_answer: Prompts that have a reference answer.
        max_prompt_length: Most tokens of a prompt.
        eval_funcs: The rules that rows name; prompts refer to them by number.
        files: The files read; prompts refer to them by number.
        train: Prompts to train on.
        train_tokens: Their tokens.
        validation: Prompts held out, or 0.
        unread: How many rows have each key that nothing reads, by file.
        sources: Of a blend, the prompts to train on of each source; else none.
    """

    rows: int
    dropped: int
    cut: int
    with_answer: int
    max_prompt_length: int
    eval_funcs: tuple[str, ...]
    files: tuple[str, ...]
    train: int
    train_tokens: int
    validation: int
    unread: dict[str, dict[str, int]] = field(default_factory=dict)
    sources: tuple[int, ...] = ()

    def describe(self) -> str:
        """Say in one line what became of the rows, and in others what the user should know."""
        counts = [f"{self.rows:,} rows"]
        limit = f"longer than {self.max_prompt_length:,} tokens"
        if self.dropped:
            counts.append(f"{self.dropped:,} dropped: {limit}")
        if self.cut:
            counts.append(f"{self.cut:,} cut: {limit}")
        rules = f", for {', '.join(self.eval_funcs)}" if self.eval_funcs else ""
        line = (
            f"data: {', '.join(counts)}; {self.train:,} prompts to train on, of "
            f"{self.train_tokens / self.train:.0f} tokens on average, {self.validation:,} held "
            f"out; {self.with_answer:,} with a reference answer{rules}"
        )
        return "\n".join([line, *unread_notes(self.unread)])


@dataclass(frozen=True, eq=False)
class TokenLists:
    """Token ids of prompts by their number.

    Attributes:
        tokens: Tokens of all prompts, end to end (memory-mapped).
        offsets: Where each prompt starts in them, and the last one ends `[P + 1]`.
    """

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, prompt: int) -> NDArray[np.int32]:
        return self.tokens[int(self.offsets[prompt]) : int(self.offsets[prompt + 1])]


_ROWS = "rows.jsonl"


def open_rows(folder: Path) -> BinaryIO:
    """Open the file of whole rows to write it, for `encode_row`."""
    return (folder / _ROWS).open("wb")


def encode_row(asked: str, row: dict[str, object]) -> bytes:
    """Write a row and what it asks as a line; what JSON does not have becomes its text."""
    return json.dumps({"prompt": asked, "row": row}, default=str).encode() + b"\n"


@dataclass(frozen=True, eq=False)
class WholeRows:
    """Rows of prompts as they stand in their files, by the prompts' numbers.

    Attributes:
        file: A line for each.
        starts: Where each line starts, and the last one ends `[P + 1]`, in bytes.
    """

    file: Path
    starts: NDArray[np.int64]

    def read(self, prompts: Iterable[int]) -> list[tuple[str, dict[str, Any]]]:
        """Read the rows of some prompts, each after what it asks."""
        found = []
        with self.file.open("rb") as stream:
            for prompt in prompts:
                stream.seek(int(self.starts[prompt]))
                whole = json.loads(stream.readline())
                found.append((whole["prompt"], whole["row"]))
        return found


@dataclass(frozen=True, eq=False, kw_only=True)
class PromptData(Prepared):
    """A folder that `prompts.prepare` wrote. Prompts are numbered over both splits, P in all.

    Attributes:
        prompts: Token ids of each prompt.
        answers: The reference answer to each prompt, or None `[P]`.
        eval_funcs: The rule that compares with it, or None `[P]`.
        train: Numbers of the prompts to train on.
        validation: Numbers of the prompts held out; maybe none.
        rows: The rows themselves, where rewards of one's own want them.
        shares: Of a blend, what is taken of each source in a pass.
    """

    summary: PromptSummary
    prompts: TokenLists
    answers: list[str | None]
    eval_funcs: list[str | None]
    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    rows: WholeRows | None = None
    shares: tuple[Share, ...] = ()

    @classmethod
    def open(cls, folder: Path, weights: Collection[float] = ()) -> Self:
        """Map the arrays of a prepared folder into memory, and read its answers.

        Args:
            folder: The folder.
            weights: Of the sources, where it is of a blend and to be taken in its order.
        """
        summary = PromptSummary.from_json(read_summary(folder))
        answers = json.loads((folder / "answers.json").read_text("utf-8"))
        row_starts = folder / "row_starts.npy"
        rows = WholeRows(folder / _ROWS, read_array(row_starts)) if row_starts.exists() else None
        return cls(
            folder=folder,
            summary=summary,
            prompts=TokenLists(
                read_array(folder / "tokens.npy"), read_array(folder / "offsets.npy")
            ),
            answers=answers["answers"],
            eval_funcs=answers["eval_funcs"],
            train=read_array(folder / "train.npy"),
            validation=read_array(folder / "validation.npy"),
            rows=rows,
            shares=share_out(summary.sources, weights),
            **origin_arrays(folder),
        )
