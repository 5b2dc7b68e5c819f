"""Rows merged, shuffled and cut into files of about the same size.

A shuffle of any size takes the memory of one bucket: rows are dealt to buckets at random, then each
bucket is shuffled by itself. Every order is as likely as any other, and the seed decides which.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignctl import atomic
from alignctl.corpus.blocks import Block, read_blocks, total_bytes
from alignctl.corpus.manifest import FileRecord, file_record
from alignctl.corpus.writers import SUFFIX, Compression, LineWriter
from alignctl.data.rows.files import TABLES, parse_object
from alignctl.errors import UserError

_BUCKET_BYTES = 1 << 26
# Each is an open file, of which a process may have 1024.
_MAX_BUCKETS = 512
# Text is rarely smaller than this share of itself when it is compressed.
_COMPRESSED = 8


@dataclass(frozen=True)
class Options:
    """What is cut, and how.

    Attributes:
        files: Files of rows.
        folder: The folder to write.
        lines: Most rows of a file, or None.
        bytes: Most bytes of a file before compression, or None. A longer row has its own file.
        shuffle: Whether rows are shuffled; otherwise they stay in order.
        seed: What decides the order.
        compression: How files are compressed.
    """

    files: tuple[Path, ...]
    folder: Path
    lines: int | None = None
    bytes: int | None = None
    shuffle: bool = False
    seed: int = 1234
    compression: Compression = "zst"


@dataclass(frozen=True)
class Shard:
    """A file that was written."""

    record: FileRecord
    lines: int


def shard(
    options: Options,
    on_progress: Callable[[int, int], None] | None = None,
    on_wait: atomic.OnWait | None = None,
) -> list[Shard]:
    """Write `train-00000.jsonl.zst`, ... and `manifest.json` into a new folder.

    Args:
        options: What to do.
        on_progress: Called with the bytes of files and of rows that were read.
        on_wait: What `atomic.locked` is given.

    Raises:
        UserError: A file cannot be read, or a row is not a JSON object.
        RunError: The disk is full. No folder is left behind.
    """
    with atomic.new_folder(options.folder, on_wait) as partial:
        lines = _lines(options, on_progress)
        if options.shuffle:
            lines = _shuffle(lines, options, partial)
        shards = list(_write(lines, options, partial))
        if not shards:
            names = ", ".join(str(file) for file in options.files)
            raise UserError(f"{names}: there is no row in it")
        _write_manifest(options, shards, partial)
    return shards


def _lines(options: Options, on_progress: Callable[[int, int], None] | None) -> Iterator[bytes]:
    """Yield all rows and check each of them: a broken one would be found much later."""
    before = size = 0
    file: Path | None = None
    for block in read_blocks(options.files, "file"):
        if file is not None and file != block.file:
            before += file.stat().st_size
        file = block.file
        yield from _rows(block)
        size += len(block.content)
        if on_progress is not None:
            on_progress(before + block.consumed, size)


def _rows(block: Block) -> Iterator[bytes]:
    if block.kind == "file":
        for document in block.documents("text"):
            if isinstance(document.text, UserError):
                raise document.text
            yield json.dumps({"text": document.text}, ensure_ascii=False).encode()
        return
    for number, line in block.lines():
        parse_object(line, block.file, number)
        yield line.rstrip(b"\r")


def _shuffle(lines: Iterator[bytes], options: Options, partial: Path) -> Iterator[bytes]:
    random = np.random.default_rng(options.seed)
    size = total_bytes(options.files)
    if any(file.suffix in (".gz", ".zst", *TABLES) for file in options.files):
        size *= _COMPRESSED
    count = min(max(size // _BUCKET_BYTES, 1), _MAX_BUCKETS)
    buckets = [partial / f".bucket-{number}" for number in range(count)]
    with ExitStack() as stack:
        streams = [stack.enter_context(bucket.open("wb")) for bucket in buckets]
        for line in lines:
            streams[int(random.integers(count))].write(line + b"\n")
    for bucket in buckets:
        rows = bucket.read_bytes().split(b"\n")[:-1]
        bucket.unlink()
        for place in random.permutation(len(rows)).tolist():
            yield rows[place]


def _write(lines: Iterator[bytes], options: Options, partial: Path) -> Iterator[Shard]:
    line = next(lines, None)
    number = 0
    while line is not None:
        name = f"train-{number:05d}{SUFFIX[options.compression]}"
        with LineWriter(partial / name) as writer:
            while line is not None and _fits(writer, line, options):
                writer.write_line(line)
                line = next(lines, None)
        yield Shard(writer.record(), writer.lines)
        number += 1


def _fits(writer: LineWriter, line: bytes, options: Options) -> bool:
    if not writer.lines:
        return True
    if options.lines is not None and writer.lines >= options.lines:
        return False
    return options.bytes is None or writer.text_bytes + len(line) + 1 <= options.bytes


def recipe(options: Options) -> dict[str, Any]:
    """Collect all that decides what is written."""
    return {
        "format": 1,
        "settings": {
            "lines": options.lines,
            "bytes": options.bytes,
            "seed": options.seed if options.shuffle else None,
            "compression": options.compression,
        },
        "source": [file_record(file).model_dump() for file in options.files],
    }


def _write_manifest(options: Options, shards: list[Shard], partial: Path) -> None:
    manifest = {
        **recipe(options),
        "rows": sum(shard.lines for shard in shards),
        "files": [{**shard.record.model_dump(), "lines": shard.lines} for shard in shards],
    }
    atomic.write_text(partial / "manifest.json", json.dumps(manifest, indent=2) + "\n")
