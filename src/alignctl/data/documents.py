"""Rows streamed through rendering, tokenisation and truncation into the arrays of a folder."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from alignctl.config.data import Truncation
from alignctl.data.rows.files import Row, read_rows
from alignctl.data.rows.schemas import Rendered, Schema, schema_of
from alignctl.data.store import ArrayWriter
from alignctl.data.text.masks import Encoded, encode, truncate
from alignctl.data.text.templates import Renderer
from alignctl.data.tokenizer import Tokenizer
from alignctl.user_files import reading

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
Progress = Callable[[int, int | None], None]
"""Called with the rows done and, if it is known beforehand, their total."""

# Enough for the tokenizer's threads; small enough that progress moves and memory does not matter.
_BATCH_ROWS = 512
_BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True, eq=False)
class Recipe:
    """How a row becomes a document."""

    render: Renderer
    tokenizer: Tokenizer
    truncation: Truncation
    window: int


class Unread:
    """Counts of the keys of rows that nothing reads, file by file, for one line about each file."""

    def __init__(self) -> None:
        self._of_file: dict[Path, Counter[str]] = {}

    def add(self, row: Row, keys: Sequence[str]) -> None:
        """Count the keys of one row."""
        if keys:
            self._of_file.setdefault(row.file, Counter()).update(keys)

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many rows have each key, by the name of the file."""
        return {str(file): dict(sorted(found.items())) for file, found in self._of_file.items()}


@dataclass(eq=False)
class Tally:
    """What became of the rows of one source, and the small arrays about its documents.

    Attributes:
        lengths: Input tokens of each document, in parts.
        targets: Learned targets of each document, in parts.
        text_hashes: Of the whole text that each document comes from, in parts: equal texts are
            held out together.
        rows: Rows read.
        unread: Keys of rows that nothing reads, by file.
        truncated: Documents that were cut.
        parted: Documents whose answers change the tokens of their prompts (see `masks`).
        divided: Rows that became several documents (see `Renderer.documents`).
        no_target: Rows left out because nothing is left to learn.
        too_long: Rows left out because they were too long.
        without_eos: Documents in which no EOS is learned.
    """

    lengths: list[NDArray[np.int64]] = field(default_factory=list)
    targets: list[NDArray[np.int64]] = field(default_factory=list)
    text_hashes: list[NDArray[np.uint64]] = field(default_factory=list)
    rows: int = 0
    unread: Unread = field(default_factory=Unread)
    truncated: int = 0
    parted: int = 0
    divided: int = 0
    no_target: int = 0
    too_long: int = 0
    without_eos: int = 0

    @property
    def documents(self) -> int:
        """Documents kept."""
        return sum(len(part) for part in self.lengths)

    def in_words(self) -> str:
        """Say the counts that explain why nothing was kept."""
        if not self.rows:
            return "there is no row in it"
        return (
            f"{self.rows} rows read, {self.no_target} dropped without an assistant token to learn, "
            f"{self.too_long} dropped as too long"
        )


class DocumentWriter:
    """The arrays with one entry per token or document, appended to as rows stream by."""

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        self._number_of = {file: number for number, file in enumerate(files)}
        self._tokens = ArrayWriter(folder / "tokens.npy", np.int32)
        self._supervised = ArrayWriter(folder / "supervised.npy", np.bool_)
        self._file_numbers = ArrayWriter(folder / "file_numbers.npy", np.int32)
        self._lines = ArrayWriter(folder / "lines.npy", np.int64)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:
            for array in (self._tokens, self._supervised, self._file_numbers, self._lines):
                stack.callback(array.close)

    def append(self, rows: Sequence[Row], documents: Sequence[Encoded]) -> None:
        """Add documents and the rows they came from."""
        self._tokens.append(np.concatenate([document.tokens for document in documents]))
        self._supervised.append(np.concatenate([document.supervised for document in documents]))
        self._file_numbers.append(np.asarray([self._number_of[row.file] for row in rows]))
        self._lines.append(np.asarray([row.line for row in rows]))


def stream(
    files: Sequence[Path],
    recipe: Recipe,
    writer: DocumentWriter,
    on_rows: Callable[[int], None],
) -> Tally:
    """Write the documents of all rows of some files.

    Args:
        files: Data files; the first row of the first one decides the schema.
        recipe: How a row becomes a document.
        writer: Where documents go.
        on_rows: Called with the number of rows of each batch that is done.

    Returns:
        The counts.
    """
    tally = Tally()
    batch = batches(files, schema_of, tally.unread)
    for (rows, conversations), written in ahead(batch, lambda each: recipe.render.start(each[1])):
        texts = []
        for row, conversation, documents in zip(rows, conversations, written, strict=True):
            tally.unread.add(row, recipe.render.unread(conversation))
            tally.divided += len(documents) > 1
            texts += [(row, documents[-1], document) for document in documents]
        encoded = encode([document for _, _, document in texts], recipe.tokenizer)
        kept = [
            (row, whole, document)
            for (row, whole, _), each in zip(texts, encoded, strict=True)
            if (document := _fitted(each, recipe, tally)) is not None
        ]
        tally.rows += len(rows)
        if kept:
            _note(tally, [whole for _, whole, _ in kept], [document for _, _, document in kept])
            writer.append([row for row, _, _ in kept], [document for _, _, document in kept])
        on_rows(len(rows))
    return tally


def _fitted(whole: Encoded, recipe: Recipe, tally: Tally) -> Encoded | None:
    is_long = len(whole.tokens) > recipe.window
    if is_long and recipe.truncation == "drop":
        tally.too_long += 1
        return None
    document = truncate(whole, recipe.window, recipe.truncation, recipe.tokenizer.bos_id)
    if not document.has_target:
        tally.no_target += 1
        return None
    tally.truncated += is_long
    tally.parted += document.is_parted
    eos_id = recipe.tokenizer.eos_id
    ends_with_eos = document.supervised[-1] and document.tokens[-1] == eos_id
    if not ends_with_eos:
        tally.without_eos += eos_id not in document.tokens[document.supervised]
    return document


def _note(tally: Tally, texts: Sequence[Rendered], documents: Sequence[Encoded]) -> None:
    def numbers(values: list[int]) -> NDArray[Any]:
        return np.asarray(values, np.int64)

    tally.lengths.append(numbers([len(document.tokens) - 1 for document in documents]))
    tally.targets.append(numbers([int(document.supervised[1:].sum()) for document in documents]))
    tally.text_hashes.append(text_hashes([text.text for text in texts]))


def text_hashes(texts: Sequence[str]) -> NDArray[np.uint64]:
    """Hash each text `[N]`, the same on every machine and in every release."""
    digests = b"".join(
        hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest() for text in texts
    )
    return np.frombuffer(digests, np.dtype("<u8")).astype(np.uint64)


def ahead(
    items: Iterable[ItemT], start: Callable[[ItemT], Callable[[], ResultT]]
) -> Iterator[tuple[ItemT, ResultT]]:
    """Yield each item with its result; the next result is computed while the caller uses this one.

    Args:
        items: The items.
        start: Begins to make something of an item, and returns what waits for it; that is called
            before the next is begun.
    """
    before: tuple[ItemT, Callable[[], ResultT]] | None = None
    for item in items:
        if before is None:
            before = item, start(item)
            continue
        last, made = before[0], before[1]()
        before = item, start(item)
        yield last, made
    if before is not None:
        yield before[0], before[1]()


class Parsed(Protocol):
    """A row in the form that its schema's parser gave it."""

    @property
    def characters(self) -> int:
        """Approximate number of characters of its text."""


ParsedT = TypeVar("ParsedT", bound=Parsed)


def batches(
    files: Sequence[Path], schema_of: Callable[[Row], Schema[ParsedT]], unread: Unread
) -> Iterator[tuple[list[Row], list[ParsedT]]]:
    """Read and parse rows, in batches large enough to keep a tokenizer's threads busy.

    Args:
        files: Data files.
        schema_of: Asked once, with the first row of the first file.
        unread: Told the keys of each row that the schema does not read.
    """
    schema = None
    rows: list[Row] = []
    parsed: list[ParsedT] = []
    characters = 0
    for row in read_rows(files):
        with reading(row):
            schema = schema or schema_of(row)
            one = schema.parse(row)
            unread.add(row, schema.unread(row))
        rows.append(row)
        parsed.append(one)
        characters += one.characters
        if len(rows) == _BATCH_ROWS or characters >= _BATCH_CHARACTERS:
            yield rows, parsed
            rows, parsed, characters = [], [], 0
    if rows:
        yield rows, parsed
