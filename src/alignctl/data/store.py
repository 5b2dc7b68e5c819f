"""Prepared documents on disk: memory-mapped arrays, their summary, and batches out of them."""

import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from pydantic import TypeAdapter

from alignctl.data.batch import Document, TokenBatch
from alignctl.data.order import Share, share_out, step_sequences
from alignctl.data.rows.files import position
from alignctl.errors import RunError, UserError

PARTED = "whose answer joins its prompt's last token: learned from the prompt's own tokens on"
"""What is said of documents that `masks` parted."""

NO_EOS = (
    "warning: no document ends with the tokenizer's eos_token, so nothing teaches the model to "
    "stop: end turns with it in the chat template, or raise batch.seq_length if all are cut"
)


def unread_notes(unread: dict[str, dict[str, int]]) -> list[str]:
    """Say, file by file, which keys of its rows nothing reads.

    Args:
        unread: How many rows have each key, by file.
    """
    return [
        f"{file}: keys that are not read: "
        + ", ".join(f"{key} ({number:,} rows)" for key, number in keys.items())
        for file, keys in unread.items()
    ]


class StoredSummary:
    """What became of the rows of prepared data, as its summary.json has it.

    Attributes:
        files: The files read; what came of their rows refers to them by number.
    """

    files: tuple[str, ...]

    def to_json(self) -> str:
        """Write the JSON text of summary.json."""
        return json.dumps(TypeAdapter(type(self)).dump_python(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        return TypeAdapter(cls).validate_python(json.loads(text))


@dataclass(frozen=True)
class SplitSummary:
    """What one split holds.

    Attributes:
        documents: Documents.
        sequences: Sequences they are packed into; as many as documents without packing.
        tokens: Input tokens of all documents.
        supervised_tokens: Targets that are learned.
        efficiency: Share of the token slots (sequences x seq_length) that hold a token.
    """

    documents: int
    sequences: int
    tokens: int
    supervised_tokens: int
    efficiency: float


@dataclass(frozen=True)
class Summary(StoredSummary):
    """What became of the rows.

    Attributes:
        rows: Rows read, training and validation files together.
        truncated: Documents that were longer than seq_length + 1 tokens and were cut.
        dropped_no_target: Rows left out because no assistant token is left to learn.
        dropped_too_long: Rows left out by `truncation=drop`.
        without_eos: Documents in which no EOS is learned (cut off, or the template writes none).
        files: The files read; documents refer to them by number.
        train: The training split.
        validation: The held-out split, or None.
        parted: Documents whose answers would have changed the tokens of their prompts.
        divided: Rows that became several documents, as their template rewrites earlier turns.
        unread: How many rows have each key that nothing reads, by file.
        sources: Of a blend, what each source has of the training split; else none.
    """

    rows: int
    truncated: int
    dropped_no_target: int
    dropped_too_long: int
    without_eos: int
    files: tuple[str, ...]
    train: SplitSummary
    validation: SplitSummary | None
    parted: int = 0
    divided: int = 0
    unread: dict[str, dict[str, int]] = field(default_factory=dict)
    sources: tuple[SplitSummary, ...] = ()

    def describe(self) -> str:
        """Say in one line what became of the rows, and in others what the user should know."""
        counts = [f"{self.rows:,} rows"]
        for number, words in (
            (self.truncated, "truncated"),
            (self.dropped_no_target, "dropped: nothing to learn"),
            (self.dropped_too_long, "dropped: too long"),
            (self.without_eos, "without EOS"),
            (self.parted, PARTED),
            (self.divided, "learned turn by turn: the chat template rewrites earlier turns"),
        ):
            if number:
                counts.append(f"{number:,} {words}")
        train = self.train
        held_out = self.validation.documents if self.validation else 0
        packed = f"{train.sequences:,} sequences, {100 * train.efficiency:.0f} % full; "
        line = (
            f"data: {', '.join(counts)}; {train.documents:,} to train on, {held_out:,} held out; "
            f"{packed if train.sequences < train.documents else ''}"
            f"{train.supervised_tokens:,} of {train.tokens:,} tokens learned"
        )
        notes = unread_notes(self.unread)
        if self.without_eos == train.documents + held_out:
            notes.append(NO_EOS)
        return "\n".join([line, *notes])


class ArrayWriter:
    """Appends to a one-dimensional .npy file whose length is known only at the end."""

    def __init__(self, file: Path, dtype: type[np.generic]) -> None:
        self._dtype = np.dtype(dtype)
        self._stream: BinaryIO = file.open("wb")
        self._length = 0
        self._write_header()

    def append(self, values: NDArray[Any]) -> None:
        """Write more elements."""
        self._stream.write(np.ascontiguousarray(values, self._dtype).tobytes())
        self._length += len(values)

    def close(self) -> None:
        """Write the length into the header."""
        # numpy leaves room in the header for a length of any number of digits.
        self._stream.seek(0)
        self._write_header()
        self._stream.close()

    def _write_header(self) -> None:
        header = {
            "descr": self._dtype.str,
            "fortran_order": False,
            "shape": (self._length,),
        }
        npy.write_array_header_1_0(self._stream, header)  # type: ignore[no-untyped-call]  # numpy's


def write_array(file: Path, values: NDArray[Any]) -> None:
    """Write one .npy file."""
    writer = ArrayWriter(file, values.dtype.type)
    writer.append(values)
    writer.close()


def read_array(file: Path) -> NDArray[Any]:
    """Map one .npy file into memory."""
    array: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    return array


def read_summary(folder: Path) -> str:
    """Read the text of a prepared folder's summary.json."""
    if not (folder / "summary.json").is_file():
        raise UserError(f"{folder}: not a folder of prepared data (no summary.json)")
    return (folder / "summary.json").read_text("utf-8")


def split_arrays(folder: Path, name: str) -> dict[str, NDArray[Any]]:
    """Map the arrays of a `Split` into memory, by its attributes."""
    return {
        "tokens": read_array(folder / "tokens.npy"),
        "supervised": read_array(folder / "supervised.npy"),
        "offsets": read_array(folder / "offsets.npy"),
        "members": read_array(folder / f"{name}_members.npy"),
        "bounds": read_array(folder / f"{name}_bounds.npy"),
    }


@contextmanager
def explain_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk, or a folder that cannot be written, into a message."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{folder}: prepared data could not be written: {error.strerror or error}",
            "free some space, or choose another --output",
        ) from error


@dataclass(frozen=True, eq=False)
class Split:
    """Sequences of one split; each is one document, or several packed together.

    Attributes:
        tokens: Tokens of all documents of the store, end to end (memory-mapped).
        supervised: Which of them are learned (memory-mapped).
        offsets: Where each document starts in them `[D + 1]`.
        members: Document numbers, sequence after sequence.
        bounds: Where each sequence starts in `members` `[S + 1]`.
        shares: Of a blend, what is taken of each source in a pass.
    """

    tokens: NDArray[np.int32]
    supervised: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    members: NDArray[np.int64]
    bounds: NDArray[np.int64]
    shares: tuple[Share, ...] = field(default=(), kw_only=True)

    @property
    def num_sequences(self) -> int:
        """Number S of sequences."""
        return len(self.bounds) - 1

    def taken(self, *, global_batch_size: int, seed: int, step: int) -> NDArray[np.int64]:
        """Choose the sequences of one step, in the order of shuffled epochs: `step_sequences`."""
        return step_sequences(
            self.num_sequences,
            global_batch_size=global_batch_size,
            seed=seed,
            step=step,
            shares=self.shares,
        )

    @cached_property
    def sequence_tokens(self) -> NDArray[np.int64]:
        """Input tokens of each sequence `[S]`."""
        lengths = np.diff(self.offsets)[self.members] - 1
        return np.add.reduceat(lengths, self.bounds[:-1])

    def lengths(self, sequences: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the input tokens of some sequences, in the shape of their numbers."""
        lengths: NDArray[np.int64] = self.sequence_tokens[sequences]
        return lengths

    def first(self) -> Document:
        """Return the first document, to be shown."""
        return self.document(int(self.members[0]))

    def document(self, number: int) -> Document:
        """Return a document by its number."""
        where = slice(int(self.offsets[number]), int(self.offsets[number + 1]))
        return Document(self.tokens[where], self.supervised[where], number)

    def batch(self, sequences: Iterable[int]) -> TokenBatch:
        """Build one micro batch of whole sequences; of none: a filler."""
        return TokenBatch.from_documents(
            [
                self.document(number)
                for sequence in sequences
                for number in self.members[
                    self.bounds[sequence] : self.bounds[sequence + 1]
                ].tolist()
            ]
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Prepared:
    """A folder of prepared data, whose entries (documents or prompts) have numbers.

    Attributes:
        folder: The folder; its name is a hash of all that decides its content.
        summary: What became of the rows.
        file_numbers: The file of each entry, a place in `summary.files` `[N]`.
        lines: The line of each entry in its file `[N]`.
    """

    folder: Path
    summary: StoredSummary
    file_numbers: NDArray[np.int32]
    lines: NDArray[np.int64]

    def where(self, number: int) -> str:
        """Say which file and line an entry came from; a document's number is in a batch's rows."""
        file = self.summary.files[int(self.file_numbers[number])]
        return position(Path(file), int(self.lines[number]))


def origin_arrays(folder: Path) -> dict[str, NDArray[Any]]:
    """Map the origin (file and line) of each entry into memory, by the attributes of `Prepared`."""
    return {name: read_array(folder / f"{name}.npy") for name in ("file_numbers", "lines")}


@dataclass(frozen=True, eq=False, kw_only=True)
class SFTData(Prepared):
    """A folder that `sft.prepare` wrote.

    Attributes:
        train: Training sequences.
        validation: Held-out sequences, or None.
    """

    summary: Summary
    train: Split
    validation: Split | None

    @classmethod
    def open(cls, folder: Path, weights: Collection[float] = ()) -> Self:
        """Map the arrays of a prepared folder into memory.

        Args:
            folder: The folder.
            weights: Of the sources, where it is of a blend and to be taken in its order.
        """
        summary = Summary.from_json(read_summary(folder))
        sizes = [source.sequences for source in summary.sources]

        def split(name: str, shares: tuple[Share, ...] = ()) -> Split:
            return Split(**split_arrays(folder, name), shares=shares)

        return cls(
            folder=folder,
            summary=summary,
            train=split("train", share_out(sizes, weights)),
            validation=split("validation") if summary.validation else None,
            **origin_arrays(folder),
        )
