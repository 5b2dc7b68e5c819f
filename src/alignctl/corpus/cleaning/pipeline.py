"""Raw files of text to one clean file, by several processes; what is left out is counted.

Workers clean, judge and sign documents; one process writes them beside the target, in order. When
all signatures are known, the documents that are not left out are copied to their place.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignctl import atomic
from alignctl.corpus.blocks import Block, Kind, read_blocks
from alignctl.corpus.cleaning import duplicates
from alignctl.corpus.cleaning.characters import Cleaner, Rules
from alignctl.corpus.cleaning.languages import language_of
from alignctl.corpus.manifest import file_record
from alignctl.corpus.pool import map_in_order
from alignctl.corpus.writers import SUFFIX, Compression, LineWriter
from alignctl.errors import UserError

TEXT_KEYS = ("text", "content", "output")
"""Keys under which the text of a row is looked for."""

DROPPED = {
    "unreadable": "unreadable: see rejected.jsonl",
    "empty": "nothing left",
    "short": "too short",
    "long": "too long",
    "language": "in another language",
    "exact_duplicate": "the same as an earlier one",
    "near_duplicate": "nearly the same as an earlier one",
}
"""Why a document is left out, and how that is told. The first reason that applies counts."""

_SHOWN_REJECTS = 5


@dataclass(frozen=True)
class Options:
    """What is cleaned, and how.

    Attributes:
        files: Files of text.
        folder: The folder to write.
        key: The key of the text in each row; None: the first of `TEXT_KEYS` that the first row has.
        rules: What happens to the characters of a document.
        txt: What a document of a `.txt` file is.
        languages: Codes of the languages that stay (ISO 639-1); none: all.
        min_characters: Fewest characters of a clean document.
        max_characters: Most characters of one; None: any number.
        exact_duplicates: Whether the same text stays once only.
        near_duplicates: Similarity from which on a document is left out; None: none is.
        compression: How the clean file is compressed.
        workers: Processes.
    """

    files: tuple[Path, ...]
    folder: Path
    key: str | None = None
    rules: Rules = field(default_factory=Rules)
    txt: Kind = "file"
    languages: tuple[str, ...] = ()
    min_characters: int = 1
    max_characters: int | None = None
    exact_duplicates: bool = True
    near_duplicates: float | None = 0.8
    compression: Compression = "none"
    workers: int = 1


@dataclass(frozen=True)
class Outcome:
    """What became of the documents.

    Attributes:
        documents: Documents found.
        kept: Documents written.
        dropped: Documents left out, by the keys of `DROPPED`.
        characters: Characters found, of documents that could be read.
        kept_characters: Characters written.
        rejected: Messages about the first unreadable documents.
    """

    documents: int
    kept: int
    dropped: dict[str, int]
    characters: int
    kept_characters: int
    rejected: tuple[str, ...]

    def describe(self) -> str:
        """Say in one line what became of the documents."""
        words = [f"{self.documents:,} documents"]
        words += [
            f"{number:,} dropped: {DROPPED[reason]}"
            for reason, number in self.dropped.items()
            if number
        ]
        share = 100 * self.kept_characters / max(self.characters, 1)
        return f"{', '.join(words)}; {self.kept:,} kept, with {share:.1f} % of the characters"


OnProgress = Callable[[int, int], None]
"""Called with the bytes of files and of text that are done."""


def clean(
    options: Options,
    on_progress: OnProgress | None = None,
    on_wait: atomic.OnWait | None = None,
) -> Outcome:
    """Write a folder: `train.jsonl` with `{"text"}` rows, `manifest.json`, `rejected.jsonl`.

    Args:
        options: What to do.
        on_progress: Told about every block.
        on_wait: What `atomic.locked` is given.

    Raises:
        UserError: A file cannot be read or ends early, no document is left, or a setting is wrong.
        RunError: The disk is full, or a worker was killed. No folder is left behind.
    """
    key = options.key or _found_key(options)
    with atomic.new_folder(options.folder, on_wait) as partial:
        work = _Work(options, key)
        total = _clean_blocks(work, partial, on_progress)
        dropped = _find_duplicates(options, partial, total)
        name = f"train{SUFFIX[options.compression]}"
        with LineWriter(partial / name) as writer:
            characters = _copy_kept(partial / "documents", total.lengths, dropped, writer)
        outcome = Outcome(
            documents=total.documents,
            kept=writer.lines,
            dropped={reason: total.dropped[reason] for reason in DROPPED},
            characters=total.characters,
            kept_characters=characters,
            rejected=tuple(total.rejected),
        )
        if not outcome.kept:
            first = f"; the first: {total.rejected[0]}" if total.rejected else ""
            raise UserError(f"no document is left: {outcome.describe()}{first}")
        _write_manifest(partial, work, outcome, writer)
        for scratch in ("documents", "bands", "signatures"):
            (partial / scratch).unlink(missing_ok=True)
    return outcome


def _found_key(options: Options) -> str:
    """Find the key under which the first readable row has its text."""
    for block in read_blocks(options.files, options.txt):
        if block.kind != "json":
            return TEXT_KEYS[0]
        for number, line in block.lines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            keys = list(record) if isinstance(record, dict) else []
            for key in TEXT_KEYS:
                if key in keys:
                    return key
            raise UserError(
                f"{block.file}:{number}: none of the keys {', '.join(TEXT_KEYS)} in this row "
                f"(its keys: {', '.join(sorted(keys)) or 'none'})",
                "name the text's: --key KEY",
            )
    return TEXT_KEYS[0]


@dataclass(frozen=True)
class _Work:
    """What a worker needs to know."""

    options: Options
    key: str


@dataclass(frozen=True)
class _Part:
    """What a worker makes of a block."""

    lines: list[bytes]
    hashes: NDArray[np.uint64]
    bands: NDArray[np.uint64] | None
    signatures: NDArray[np.uint32] | None
    documents: int
    characters: int
    dropped: Counter[str]
    rejects: list[tuple[str, int, str, bytes]]
    file: Path
    consumed: int
    text_bytes: int


@dataclass
class _Total:
    """What is kept in memory of all blocks: a few numbers per document."""

    documents: int = 0
    characters: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    rejected: list[str] = field(default_factory=list)
    hashes: list[NDArray[np.uint64]] = field(default_factory=list)
    lengths: list[NDArray[np.int64]] = field(default_factory=list)


_workers: list[tuple[_Work, Cleaner]] = []


def begin_cleaning(work: _Work) -> None:
    """Prepare a process for `clean_block`."""
    _workers[:] = [(work, Cleaner(work.options.rules))]


def clean_block(block: Block) -> _Part:
    """Clean and judge the documents of a block, in a process that is prepared for it."""
    work, cleaner = _workers[0]
    options = work.options
    texts: list[str] = []
    dropped: Counter[str] = Counter()
    rejects: list[tuple[str, int, str, bytes]] = []
    documents = characters = 0
    for raw in block.documents(work.key):
        documents += 1
        if isinstance(raw.text, UserError):
            dropped["unreadable"] += 1
            rejects.append((str(block.file), raw.line, raw.text.message, raw.content))
            continue
        characters += len(raw.text)
        text = cleaner.clean(raw.text)
        reason = _reason(text, options)
        if reason is None:
            texts.append(text)
        else:
            dropped[reason] += 1
    signed = duplicates.signatures(texts) if options.near_duplicates is not None else None
    bands = None
    if signed is not None and options.near_duplicates is not None:
        rows = duplicates.rows_per_band(options.near_duplicates)
        bands = duplicates.band_hashes(signed, rows)
    lines = [json.dumps({"text": text}, ensure_ascii=False).encode() for text in texts]
    return _Part(
        lines=lines,
        hashes=duplicates.text_hashes(texts),
        bands=bands,
        signatures=signed,
        documents=documents,
        characters=characters,
        dropped=dropped,
        rejects=rejects,
        file=block.file,
        consumed=block.consumed,
        text_bytes=len(block.content),
    )


def _reason(text: str, options: Options) -> str | None:
    """Return the reason why a clean text is left out; None if it stays."""
    if not text.strip():
        return "empty"
    if len(text) < options.min_characters:
        return "short"
    if options.max_characters is not None and len(text) > options.max_characters:
        return "long"
    if options.languages and language_of(text) not in options.languages:
        return "language"
    return None


def _clean_blocks(work: _Work, partial: Path, on_progress: OnProgress | None) -> _Total:
    options = work.options
    total = _Total()
    sizes = [file.stat().st_size for file in options.files]
    before = dict(zip(options.files, np.cumsum([0, *sizes]).tolist(), strict=False))
    text_bytes = 0
    blocks = read_blocks(options.files, options.txt)
    parts = map_in_order(clean_block, blocks, options.workers, begin_cleaning, work)
    with (
        (partial / "documents").open("wb") as documents,
        (partial / "bands").open("wb") as bands,
        (partial / "signatures").open("wb") as signatures,
        LineWriter(partial / "rejected.jsonl") as rejected,
    ):
        for part in parts:
            documents.writelines(part.lines)
            if part.bands is not None and part.signatures is not None:
                bands.write(part.bands.tobytes())
                signatures.write(part.signatures.tobytes())
            for file, line, error, content in part.rejects:
                raw = content.decode("utf-8", "backslashreplace")
                rejected.write_row({"file": file, "line": line, "error": error, "raw": raw})
            _note(total, part)
            text_bytes += part.text_bytes
            if on_progress is not None:
                on_progress(before[part.file] + part.consumed, text_bytes)
    if not total.dropped["unreadable"]:
        (partial / "rejected.jsonl").unlink()
    return total


def _note(total: _Total, part: _Part) -> None:
    total.documents += part.documents
    total.characters += part.characters
    total.dropped += part.dropped
    total.hashes.append(part.hashes)
    total.lengths.append(np.asarray([len(line) for line in part.lines], np.int64))
    room = _SHOWN_REJECTS - len(total.rejected)
    total.rejected += [error for _, _, error, _ in part.rejects[:room]]


def _find_duplicates(options: Options, partial: Path, total: _Total) -> NDArray[np.bool_]:
    """Mark the documents written so far that are left out as duplicates `[N]`."""
    counts = [len(part) for part in total.hashes]
    dropped = np.zeros(sum(counts), np.bool_)
    if options.exact_duplicates and len(dropped):
        hashes = np.concatenate(total.hashes)
        total.hashes.clear()
        dropped = duplicates.repeats(hashes)
        del hashes
        total.dropped["exact_duplicate"] = int(dropped.sum())
    if options.near_duplicates is not None and len(dropped):

        def signatures_of(documents: NDArray[np.int64]) -> NDArray[np.uint32]:
            # Mapped anew each time: pages that were looked at would add up.
            signed = np.memmap(partial / "signatures", np.uint32, "r")
            rows: NDArray[np.uint32] = signed.reshape(len(dropped), -1)[documents]
            return rows

        near = duplicates.near_repeats(
            _bands(partial / "bands", counts), signatures_of, options.near_duplicates, dropped
        )
        total.dropped["near_duplicate"] = int(near.sum())
        dropped = dropped | near
    return dropped


def _bands(file: Path, counts: list[int]) -> Iterator[NDArray[np.uint64]]:
    """Read each band of all documents, from parts that hold all bands of some `[bands, n]`."""
    total = sum(counts)
    height = file.stat().st_size // (total * np.dtype(np.uint64).itemsize)
    starts = np.cumsum([0, *counts]).tolist()
    with file.open("rb") as stream:
        for band in range(height):
            whole = np.empty(total, np.uint64)
            for start, count in zip(starts, counts, strict=False):
                stream.seek((start * height + band * count) * whole.itemsize)
                whole[start : start + count] = np.fromfile(stream, np.uint64, count)
            yield whole


def _copy_kept(
    file: Path, lengths: list[NDArray[np.int64]], dropped: NDArray[np.bool_], writer: LineWriter
) -> int:
    """Write the lines that are not left out; return their characters."""
    characters = 0
    with file.open("rb") as stream:
        sizes = np.concatenate([np.empty(0, np.int64), *lengths])
        for size, is_dropped in zip(sizes, dropped, strict=True):
            line = stream.read(int(size))
            if not is_dropped:
                writer.write_line(line)
                characters += len(json.loads(line)["text"])
    return characters


def recipe(options: Options) -> dict[str, Any]:
    """Collect all that decides what is written."""
    settings: dict[str, Any] = asdict(options) | {"key": options.key or _found_key(options)}
    for where in ("files", "folder", "workers"):
        del settings[where]
    source = [file_record(file).model_dump() for file in options.files]
    return {"format": 1, "settings": settings, "source": source}


def _write_manifest(partial: Path, work: _Work, outcome: Outcome, writer: LineWriter) -> None:
    manifest = {
        **recipe(replace(work.options, key=work.key)),
        "outcome": {name: value for name, value in asdict(outcome).items() if name != "rejected"},
        "files": [writer.record().model_dump()],
    }
    atomic.write_text(partial / "manifest.json", json.dumps(manifest, indent=2) + "\n")
