"""One file of `torch.save`, read lazily and safely.

Such a file is a zip archive: a pickle that describes the objects, and beside it the bytes of each
storage, uncompressed. Only the description is read; it names what it needs, and nothing of that is
imported or run.
"""

import io
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from alignctl.checkpoints.pickles import oldest_torch_file, restricted_pickle, torch_names
from alignctl.checkpoints.pickles.restricted_pickle import Forbidden
from alignctl.checkpoints.pickles.torch_archive import Archive, open_archive
from alignctl.checkpoints.pickles.torch_names import Described
from alignctl.checkpoints.tensors.dtypes import Bits
from alignctl.checkpoints.tensors.lazy import LazyTensor, Spec, lazily, unreadable
from alignctl.checkpoints.tensors.mapped_file import read_bytes
from alignctl.errors import UserError
from alignctl.user_files import opened


@dataclass(frozen=True)
class StoredTensor(LazyTensor):
    """A tensor that lies in a file as it was in the memory of whoever wrote it.

    Attributes:
        described: Its place in that memory.
    """

    described: Described


@dataclass(frozen=True)
class FlatTensor(StoredTensor):
    """A tensor of one dimension, of which a part can be read alone.

    Attributes:
        part: Reads the elements from one place up to another. The checksum is that of the
            whole, which is read once for it.
    """

    part: Callable[[int, int], Bits]


def narrow(tensor: LazyTensor, start: int, stop: int) -> LazyTensor:
    """Cut the elements from one place up to another out of a tensor of one dimension."""
    if isinstance(tensor, FlatTensor):
        part = tensor.part
        return LazyTensor((stop - start,), tensor.dtype, lambda: part(start, stop), tensor.where)
    return tensor.map((stop - start,), lambda whole: whole[start:stop])


class _Part(io.RawIOBase):
    """A part of a file, as a file of its own."""

    def __init__(self, stream: BinaryIO, start: int, length: int) -> None:
        super().__init__()
        self._stream, self._start, self._length, self._at = stream, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + {0: 0, 1: self._at, 2: self._length}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._stream.seek(self._start + self._at)
        room = memoryview(buffer).cast("B")[: max(0, self._length - self._at)]
        content = self._stream.read(len(room))
        room[: len(content)] = content
        self._at += len(content)
        return len(content)


def read(file: Path, *, start: int = 0, length: int | None = None) -> Any:
    """Read a file, with a `LazyTensor` in place of each tensor; nothing of it is executed.

    The oldest files (before torch 1.6) are not archives; those are read whole.

    Args:
        file: The file.
        start: Where it begins in a larger one.
        length: How long it then is; None for a file of its own.

    Raises:
        UserError: It cannot be read, is damaged, is no file of `torch.save`, or asks for a class
            or function that has no place in a checkpoint.
    """
    try:
        with opened(file) as stream:
            whole = stream.seek(0, io.SEEK_END)
            part = _Part(stream, start, whole - start if length is None else length)
            return _read(file, start, cast("BinaryIO", part))
    except OSError as error:
        raise unreadable(file, "PyTorch", error) from error


def _read(file: Path, start: int, part: BinaryIO) -> Any:
    try:
        if not zipfile.is_zipfile(part):
            part.seek(0)
            return oldest_torch_file.read(file, part)
        archive = open_archive(file, start, part)
        tree = restricted_pickle.loads(
            archive.description, torch_names.ALLOWED, torch_names.storage
        )
        return lazily(tree, Described, partial(_lazy_tensor, archive))
    except UserError:
        raise
    except Forbidden as error:
        raise UserError(
            f"{file}: refused: it asks for {error.name} when it is loaded, which no checkpoint "
            "needs",
            "it may have been made to run code; nothing of it was run. A file that you trust can "
            "be saved anew with tensors only, or as safetensors",
        ) from error
    except Exception as error:  # damaged bytes can raise anything
        is_plain = isinstance(error, pickle.UnpicklingError | ValueError | zipfile.BadZipFile)
        raise unreadable(
            file, "PyTorch", error if is_plain and str(error) else ValueError(repr(error)[:200])
        ) from error


def _lazy_tensor(archive: Archive, described: Described, at: str) -> LazyTensor:
    """Open a tensor by its place in the file; of a view, read only the bytes between its ends."""
    shape, dtype, stride = described.shape, described.dtype, described.stride
    file, where = archive.file, f"{archive.file}: {at}" if at else str(archive.file)
    if 0 in shape:
        return LazyTensor(shape, dtype, lambda: np.empty(shape, dtype.bits), where)
    key, size = described.storage.key, dtype.itemsize
    entry = archive.storages.get(key)
    if entry is None:
        raise unreadable(file, "PyTorch", ValueError(f"{at} has no place in the archive"))
    if entry.num_bytes != described.storage.numel * described.storage.dtype.itemsize:
        raise UserError(
            f"{where}: its storage is of {entry.num_bytes} bytes, not of "
            f"{described.storage.numel} x {described.storage.dtype.itemsize}"
        )
    first = described.offset * size
    span = (1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))) * size
    if first + span > entry.num_bytes:
        raise UserError(f"{where}: reaches beyond its storage of {entry.num_bytes} bytes")
    place = archive.start + entry.begin + first
    # Of a dimension of one element any step will do.
    steps = zip(shape, stride, Spec(shape, dtype).strides, strict=True)
    is_contiguous = all(count == 1 or step == whole for count, step, whole in steps)

    def part(start: int, stop: int) -> Bits:
        archive.verify(key, where)
        return read_bytes(file, place + start * size, (stop - start) * size).view(dtype.bits)

    def bits() -> Bits:
        if np.prod(shape, dtype=object) * size > entry.num_bytes:
            raise UserError(f"{where}: repeats the {entry.num_bytes} bytes of its storage")
        if span != entry.num_bytes:
            archive.verify(key, where)
        content = read_bytes(file, place, span)
        if span == entry.num_bytes:
            archive.compare(key, content, where)
        elements = content.view(dtype.bits)
        if is_contiguous:
            return elements.reshape(shape)
        strides = [step * size for step in stride]
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(elements, shape, strides))

    if stride == (1,):
        return FlatTensor(shape, dtype, bits, where, described, part)
    return StoredTensor(shape, dtype, bits, where, described)


def flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, LazyTensor]]:
    """Yield the tensors of nested dicts, by their names joined with dots."""
    if isinstance(tree, LazyTensor):
        yield prefix, tree
    elif isinstance(tree, Mapping):
        for key, branch in tree.items():
            yield from flatten(branch, f"{prefix}.{key}" if prefix else str(key))
