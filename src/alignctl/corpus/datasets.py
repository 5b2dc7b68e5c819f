"""Megatron's indexed datasets as they lie on disk: found, opened, and looked at before a run.

NAME.bin holds the token ids of all documents end to end; NAME.idx their type and, for each
document, how many there are and where they start.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from alignctl.corpus.manifest import CorpusManifest, beside, prefix_of, read_manifest
from alignctl.errors import UserError

_MAGIC = b"MMIDIDX\x00\x00" + (1).to_bytes(8, "little")
"""Name and version: the first 17 bytes of an .idx."""
_HEADER_BYTES = len(_MAGIC) + 1 + 8 + 8
_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
"""The integers among Megatron's codes of types; token ids are 4 or 8."""
_CHUNK = 1 << 24
_AGAIN = "copy it again, or write it again with: alignctl prepare tokenize"


@dataclass(frozen=True, eq=False)
class Indexed:
    """An indexed dataset.

    Attributes:
        prefix: NAME.
        dtype: Type of the token ids.
        lengths: Tokens of each document `[D]`, mapped.
        manifest: What `prepare tokenize` wrote beside it; None for what others wrote.
    """

    prefix: Path
    dtype: np.dtype[Any]
    lengths: NDArray[np.int32]
    manifest: CorpusManifest | None

    @classmethod
    def open(cls, prefix: Path) -> Self:
        """Maps an index, and compares it with the sizes of both files and with the manifest.

        Raises:
            UserError: A file is missing, cut short, or of another dataset than the others.
        """
        for suffix in (".idx", ".bin"):
            _check_readable(prefix, beside(prefix, suffix))
        has_manifest = beside(prefix, ".json").is_file()
        manifest = read_manifest(prefix) if has_manifest else None
        idx, data = beside(prefix, ".idx"), beside(prefix, ".bin")
        dtype, lengths, starts = _read_index(idx)
        total = int(lengths.sum(dtype=np.int64))
        if (lengths < 0).any() or not np.array_equal(
            starts, (np.cumsum(lengths, dtype=np.int64) - lengths) * dtype.itemsize
        ):
            raise UserError(f"{idx}: the documents do not follow each other: damaged", _AGAIN)
        if (found := data.stat().st_size) != total * dtype.itemsize:
            raise UserError(
                f"{data}: {found:,} bytes, where the {total:,} tokens of {idx.name} take "
                f"{total * dtype.itemsize:,}: one of the two is cut short, or they are of "
                "different datasets",
                _AGAIN,
            )
        if manifest and (manifest.documents, manifest.tokens) != (len(lengths), total):
            raise UserError(
                f"{idx}: {len(lengths):,} documents of {total:,} tokens, where {prefix.name}.json "
                f"says {manifest.documents:,} of {manifest.tokens:,}",
                _AGAIN,
            )
        return cls(prefix, dtype, lengths, manifest)

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.lengths.sum(dtype=np.int64))

    @property
    def num_bytes(self) -> int:
        """Bytes of the .bin."""
        return self.tokens * self.dtype.itemsize

    def last_tokens(self, count: int) -> NDArray[Any]:
        """The last token of each of the first `count` documents that have one."""
        ends = np.cumsum(self.lengths[:count], dtype=np.int64)[self.lengths[:count] > 0] - 1
        return np.memmap(beside(self.prefix, ".bin"), self.dtype, mode="r")[ends]

    def fingerprint(self) -> list[object]:
        """What tells it from another one: its path, the size of the .bin, and a hash of the .idx.

        The .bin itself is not read: it may be terabytes.
        """
        with beside(self.prefix, ".idx").open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return [str(self.prefix), self.num_bytes, digest]

    def check_ids(self, vocab_size: int, on_bytes: Callable[[int], None] = lambda _: None) -> None:
        """Refuses token ids that the model has no row for.

        The manifest knows the highest one; without it, every token is read.

        Args:
            vocab_size: Rows of the model's embedding.
            on_bytes: Told how many bytes were read.

        Raises:
            UserError: An id is too high, or negative.
        """
        lowest, highest = 0, self.manifest.max_token_id if self.manifest else -1
        if self.manifest is None and self.tokens:
            tokens = np.memmap(beside(self.prefix, ".bin"), self.dtype, mode="r")
            for start in range(0, len(tokens), _CHUNK):
                chunk = tokens[start : start + _CHUNK]
                lowest, highest = min(lowest, int(chunk.min())), max(highest, int(chunk.max()))
                on_bytes(chunk.nbytes)
        if highest >= vocab_size or lowest < 0:
            wrong = highest if highest >= vocab_size else lowest
            raise UserError(
                f"{self.prefix}: token id {wrong:,} is beyond the {vocab_size:,} rows of the "
                "model's vocabulary",
                "tokenise the text with the model's own tokenizer (alignctl prepare tokenize), or "
                f"grow the vocabulary: extra_vocab_size={highest + 1 - vocab_size}"
                if lowest >= 0
                else _AGAIN,
            )


def find(path: Path) -> list[Indexed]:
    """The datasets that a path means: one by its NAME or one of its files, or all of a folder.

    Raises:
        UserError: There is none, or one is damaged.
    """
    if not path.is_dir():
        return [Indexed.open(prefix_of(path))]
    prefixes = sorted(file.with_suffix("") for file in path.glob("*.idx"))
    if not prefixes:
        raise UserError(
            f"{path}: no indexed dataset (NAME.bin and NAME.idx) in this folder",
            "alignctl prepare tokenize writes one",
        )
    return [Indexed.open(prefix) for prefix in prefixes]


def _check_readable(prefix: Path, file: Path) -> None:
    other = beside(prefix, ".bin" if file.suffix == ".idx" else ".idx")
    try:
        with file.open("rb"):
            return
    except FileNotFoundError as error:
        if other.is_file():
            raise UserError(
                f"{file}: missing, though {other.name} is there", "copy it too"
            ) from error
        near = sorted(each.stem for each in prefix.parent.glob("*.idx"))
        names = f"; in that folder: {', '.join(near[:5])}" if near else ""
        raise UserError(
            f"{prefix}: no indexed dataset of this name ({file.name} does not exist){names}",
            "give the path without .bin or .idx; alignctl prepare tokenize writes one",
        ) from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error


def _read_index(file: Path) -> tuple[np.dtype[Any], NDArray[np.int32], NDArray[np.int64]]:
    """The type of the tokens; how many each document has and the byte where it starts `[D]`."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(_HEADER_BYTES)
    if not head.startswith(_MAGIC):
        raise UserError(f"{file}: not the index of a Megatron dataset (its first bytes differ)")
    if len(head) < _HEADER_BYTES:
        raise UserError(f"{file}: {size} bytes: it is cut short", _AGAIN)
    code = head[len(_MAGIC)]
    if code not in _DTYPES:
        raise UserError(f"{file}: its type of tokens (code {code}) is none of integers")
    documents, boundaries = np.frombuffer(head, "<u8", 2, len(_MAGIC) + 1).tolist()
    expected = _HEADER_BYTES + 12 * documents + 8 * boundaries
    if size != expected:
        raise UserError(
            f"{file}: {size:,} bytes, where an index of {documents:,} documents has {expected:,}: "
            "it is cut short, or not one of texts",
            _AGAIN,
        )
    if not documents:
        raise UserError(f"{file}: the dataset has no documents")
    content = np.memmap(file, np.uint8, mode="r")
    lengths = np.frombuffer(content, "<i4", documents, _HEADER_BYTES)
    starts = np.frombuffer(content, "<i8", documents, _HEADER_BYTES + lengths.nbytes)
    return np.dtype(_DTYPES[code]), lengths, starts
