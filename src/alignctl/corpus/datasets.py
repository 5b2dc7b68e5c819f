"""Indexed datasets to train on: found by a path, and looked at before a run."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from alignctl.corpus.indexed import IndexedTokens
from alignctl.corpus.manifest import CorpusManifest, name_beside, prefix_of, read_manifest
from alignctl.errors import UserError
from alignctl.user_files import opened

_CHUNK = 1 << 24
"""Tokens that are looked at together."""
_AGAIN = "copy it again, or write it again with: alignctl prepare tokenize"


@dataclass(frozen=True, eq=False)
class Indexed:
    """An indexed dataset.

    Attributes:
        prefix: NAME.
        data: Its tokens and index, mapped.
        manifest: What `prepare tokenize` wrote beside it; None for what others wrote.
    """

    prefix: Path
    data: IndexedTokens
    manifest: CorpusManifest | None

    @classmethod
    def open(cls, prefix: Path) -> Self:
        """Map both files and compare them with each other and with the manifest.

        Raises:
            UserError: A file is missing, cut short, or of another dataset than the others.
        """
        for suffix in (".idx", ".bin"):
            _check_readable(prefix, name_beside(prefix, suffix))
        manifest = read_manifest(prefix) if name_beside(prefix, ".json").is_file() else None
        data, idx = IndexedTokens.open(prefix), name_beside(prefix, ".idx")
        ends = np.cumsum(data.lengths, dtype=np.int64)
        if (data.lengths < 0).any() or not np.array_equal(data.starts, ends - data.lengths):
            raise UserError(f"{idx}: the documents do not follow each other: damaged", _AGAIN)
        found = (len(data.lengths), len(data.tokens))
        if manifest and (manifest.documents, manifest.tokens) != found:
            raise UserError(
                f"{idx}: {found[0]:,} documents of {found[1]:,} tokens, where {prefix.name}.json "
                f"says {manifest.documents:,} of {manifest.tokens:,}",
                _AGAIN,
            )
        return cls(prefix, data, manifest)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each sequence of the index `[D]`, which Megatron shuffles as documents."""
        return self.data.lengths

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return len(self.data.tokens)

    @property
    def num_bytes(self) -> int:
        """Bytes of the .bin."""
        return self.data.tokens.nbytes

    def last_tokens(self, count: int) -> NDArray[Any]:
        """Return the last token of each of the first `count` documents that have one."""
        ends = np.cumsum(self.lengths[:count], dtype=np.int64)[self.lengths[:count] > 0] - 1
        last: NDArray[Any] = self.data.tokens[ends]
        return last

    def fingerprint(self) -> list[object]:
        """List what identifies it: its path, the size of the .bin, and a hash of the .idx.

        The .bin itself is not read: it may be terabytes.
        """
        with name_beside(self.prefix, ".idx").open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return [str(self.prefix), self.num_bytes, digest]

    def check_ids(self, vocab_size: int, on_bytes: Callable[[int], None] = lambda _: None) -> None:
        """Refuse token ids that the model has no row for.

        The manifest knows the highest one; without it, every token is read.

        Args:
            vocab_size: Rows of the model's embedding.
            on_bytes: Told how many bytes were read.

        Raises:
            UserError: An id is too high, or negative.
        """
        lowest, highest = 0, self.manifest.max_token_id if self.manifest else -1
        if self.manifest is None:
            for start in range(0, self.tokens, _CHUNK):
                chunk = self.data.tokens[start : start + _CHUNK]
                lowest, highest = min(lowest, int(chunk.min())), max(highest, int(chunk.max()))
                on_bytes(chunk.nbytes)
        if highest >= vocab_size or lowest < 0:
            wrong = highest if highest >= vocab_size else lowest
            raise UserError(
                f"{self.prefix}: token id {wrong:,} is beyond the {vocab_size:,} rows of the "
                "model's vocabulary",
                "tokenise the text with the model's own tokenizer (alignctl prepare tokenize), or "
                f"grow the vocabulary to {highest + 1:,} rows: extra_vocab_size"
                if lowest >= 0
                else _AGAIN,
            )


def find(path: Path) -> list[Indexed]:
    """Open the datasets that a path means: one by its NAME or one of its files, or all of a folder.

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
    other = name_beside(prefix, ".bin" if file.suffix == ".idx" else ".idx")
    try:
        with opened(file):
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
