"""Megatron's indexed dataset: NAME.bin holds the tokens, NAME.idx where each document is.

The .idx, little-endian (megatron/core/datasets/indexed_dataset.py, 0.16.1):

    9 bytes   MMIDIDX and two zeros
    uint64    version, 1
    uint8     type of the tokens: `_CODES`
    uint64    sequences S
    uint64    document boundaries D + 1
    int32     tokens of each sequence [S]
    int64     byte in the .bin at which each sequence starts [S]
    int64     the sequence at which each document starts, and S [D + 1]
    int8      kind of each sequence [S]; only where there are pictures or sounds beside text

What we write is int32 or uint16, and a document is one sequence, as Megatron's own preprocessing
has it without sentence splitting. What others wrote may be of any whole numbers.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from alignctl.corpus.manifest import name_beside
from alignctl.errors import UserError
from alignctl.user_files import check_regular

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_OLD_MAGIC = b"TNTIDX\x00\x00"
"""Of the index before that one, which Megatron-LM gave up in 2023."""
_CODES: dict[str, int] = {
    "uint8": 1,
    "int8": 2,
    "int16": 3,
    "int32": 4,
    "int64": 5,
    "float64": 6,
    "float32": 7,
    "uint16": 8,
}
"""All types that Megatron-Core's builder writes."""
_PART = 1 << 20
_AGAIN = "write it with: alignctl prepare tokenize"

Dtype = Literal["uint16", "int32"]


def dtype_for(vocab_size: int) -> Dtype:
    """Choose the type that Megatron's builder takes for a vocabulary of this size."""
    return "uint16" if vocab_size < 65500 else "int32"


def write_index(file: Path, lengths: NDArray[np.int32], dtype: Dtype) -> None:
    """Write a .idx; the lengths may be a memory-mapped file, which is read in parts.

    Args:
        file: The file to write.
        lengths: Tokens of each document `[D]`.
        dtype: Type of the tokens.
    """
    documents = len(lengths)
    with file.open("wb") as stream:
        header = _HEADER.pack(_MAGIC, _VERSION, _CODES[dtype], documents, documents + 1)
        stream.write(header)
        for start in range(0, documents, _PART):
            stream.write(lengths[start : start + _PART].astype("<i4").tobytes())
        offset = 0
        for start in range(0, documents, _PART):
            sizes = lengths[start : start + _PART].astype(np.int64) * np.dtype(dtype).itemsize
            ends = offset + np.cumsum(sizes)
            stream.write((ends - sizes).astype("<i8").tobytes())
            offset = int(ends[-1])
        for start in range(0, documents + 1, _PART):
            end = min(start + _PART, documents + 1)
            stream.write(np.arange(start, end, dtype="<i8").tobytes())


def _type(index: Path, magic: bytes, version: int, code: int) -> np.dtype[Any]:
    """Return the type of the tokens, which the header of an index gives."""
    if magic.startswith(_OLD_MAGIC):
        raise UserError(f"{index}: an index of the kind before MMIDIDX, which is not read", _AGAIN)
    names = {number: name for name, number in _CODES.items()}
    if magic != _MAGIC or version != _VERSION or code not in names:
        raise UserError(f"{index}: not an index of tokens as Megatron writes it", _AGAIN)
    dtype = np.dtype(names[code])
    if dtype.kind == "f":
        raise UserError(
            f"{index}: its tokens are of {dtype.name}, which are no token ids",
            f"types that are read: {', '.join(n for n in _CODES if not n.startswith('float'))}",
        )
    return dtype


@dataclass(frozen=True, eq=False)
class IndexedTokens:
    """An indexed dataset, memory-mapped.

    Attributes:
        tokens: All tokens `[N]`.
        lengths: Tokens of each sequence `[S]`.
        starts: Place in `tokens` at which each sequence starts `[S]`.
        boundaries: The sequence at which each document starts, and S `[D + 1]`.
    """

    tokens: NDArray[Any]
    lengths: NDArray[np.int32]
    starts: NDArray[np.int64]
    boundaries: NDArray[np.int64]

    @classmethod
    def open(cls, prefix: Path) -> Self:
        """Map the two files of a prefix.

        Raises:
            UserError: One is missing, or is no indexed dataset, or they do not fit each other.
        """
        index, data = name_beside(prefix, ".idx"), name_beside(prefix, ".bin")
        try:
            for file in (index, data):  # NumPy would wait for a pipe's writer
                check_regular(file, file.stat().st_mode)
            raw = np.memmap(index, np.uint8, "r")
            magic, version, code, sequences, boundaries = _HEADER.unpack(
                raw[: _HEADER.size].tobytes()
            )
            size = data.stat().st_size
        except (OSError, ValueError, struct.error) as error:
            raise UserError(f"{index}: not a readable index: {error}") from error
        expected = _HEADER.size + 12 * sequences + 8 * boundaries
        dtype = _type(index, magic, version, code)
        if len(raw) == expected + sequences > expected:
            raise UserError(
                f"{index}: the index of a multimodal dataset: each of its {sequences:,} sequences "
                "has a kind",
                "alignctl trains on text alone: write the text to a dataset of its own",
            )
        if len(raw) != expected:
            raise UserError(
                f"{index}: not an index of tokens as Megatron writes it, or cut short "
                f"({len(raw):,} bytes)",
                _AGAIN,
            )
        if not size or size % dtype.itemsize:
            raise UserError(f"{data}: {size:,} bytes are not whole tokens of {dtype.name}")

        def part(start: int, count: int, kind: str) -> NDArray[Any]:
            return np.frombuffer(raw, kind, count, start)

        lengths = part(_HEADER.size, sequences, "<i4")
        pointers = part(_HEADER.size + 4 * sequences, sequences, "<i8")
        if int(lengths.sum(dtype=np.int64)) * dtype.itemsize != size:
            raise UserError(
                f"{data}: {size // dtype.itemsize:,} tokens, where {index.name} counts "
                f"{int(lengths.sum(dtype=np.int64)):,}",
                "the two files are of different datasets; copy both again",
            )
        return cls(
            tokens=np.memmap(data, dtype, "r"),
            lengths=lengths,
            starts=pointers // dtype.itemsize,
            boundaries=part(_HEADER.size + 12 * sequences, boundaries, "<i8"),
        )

    def document_lengths(self) -> NDArray[np.int64]:
        """Count the tokens of each document `[D]`."""
        ends = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        return np.diff(ends[self.boundaries])

    def document(self, number: int) -> NDArray[Any]:
        """Return the tokens of a document, whose sequences lie end to end."""
        first, last = int(self.boundaries[number]), int(self.boundaries[number + 1])
        if first == last:
            return self.tokens[:0]
        start, end = int(self.starts[first]), int(self.starts[last - 1])
        return self.tokens[start : end + int(self.lengths[last - 1])]
