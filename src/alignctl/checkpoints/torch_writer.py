"""Writes one file of `torch.save` as a stream: a description first, then one tensor at a time.

It goes through Python's `zipfile`, since torch's own writer wants every tensor in memory at once,
and ends the process when the disk is full.
"""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from typing import Any, BinaryIO

import torch
from torch import Tensor

from alignctl.checkpoints.lazy import Spec, as_bytes

ALIGNMENT = 64
"""Storages begin at a multiple of this, as torch has them, so that they can be mapped."""


class _Storage:
    """A storage that the file will hold, as its description names it."""

    def __init__(self, key: int, spec: Spec) -> None:
        self.identity = (
            "storage",
            _storage_class(spec.dtype),
            str(key),
            "cpu",
            spec.numel,
        )


class _Described:
    """A tensor in the description: contiguous, alone in its storage."""

    def __init__(self, storage: _Storage, shape: tuple[int, ...]) -> None:
        self._storage, self._shape = storage, shape

    def __reduce__(self) -> tuple[Any, ...]:
        strides = torch.empty(self._shape, device="meta").stride()
        parts: tuple[object, ...] = (self._storage, 0, self._shape, strides, False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, parts


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> object:
        return obj.identity if isinstance(obj, _Storage) else None


def _storage_class(dtype: torch.dtype) -> type:
    return {
        torch.float32: torch.FloatStorage,
        torch.float16: torch.HalfStorage,
        torch.bfloat16: torch.BFloat16Storage,
        torch.int64: torch.LongStorage,
        torch.uint8: torch.ByteStorage,
    }[dtype]


class _From:
    """A file as seen from where an archive begins in it: `zipfile` writes absolute offsets.

    It cannot seek, so `zipfile` puts sizes and checksum behind each record, as torch does, and
    everything is written in order.
    """

    def __init__(self, stream: BinaryIO, start: int) -> None:
        self._stream, self._start = stream, start
        self.write, self.flush = stream.write, stream.flush

    def tell(self) -> int:
        return self._stream.tell() - self._start


class Writer:
    """Writes a tree of objects in which each `Spec` announces a tensor, then those tensors.

    The file is what `torch.save` writes for the same tree. Use it as a context manager.
    """

    def __init__(self, stream: BinaryIO, tree: Any, *, archive: str = "archive") -> None:
        """Writes the description.

        Args:
            stream: A file, written from where it stands; the caller closes it.
            tree: Dicts, lists, namespaces, numbers, text and `Spec`s.
            archive: Name of the folder in the archive; torch takes the file's.
        """
        self._archive = archive
        self._base = _From(stream, stream.tell())
        self._zip = zipfile.ZipFile(self._base, "w", zipfile.ZIP_STORED)  # type: ignore[call-overload]
        self._number = 0
        self._storages: list[Spec] = []
        description = io.BytesIO()
        _Pickler(description, protocol=2).dump(self._describe(tree))
        self._record("data.pkl", description.getvalue())
        self._record("byteorder", b"little")

    @property
    def specs(self) -> list[Spec]:
        """The tensors that were announced, in the order in which they are to be written."""
        return self._storages

    def _describe(self, tree: Any) -> Any:
        if isinstance(tree, Spec):
            self._storages.append(tree)
            return _Described(_Storage(len(self._storages) - 1, tree), tree.shape)
        if isinstance(tree, dict):
            return {key: self._describe(branch) for key, branch in tree.items()}
        if isinstance(tree, list):
            return [self._describe(branch) for branch in tree]
        return tree

    def write(self, tensor: Tensor) -> None:
        """Writes the next tensor."""
        spec = self._storages[self._number]
        assert (tuple(tensor.shape), tensor.dtype) == (spec.shape, spec.dtype)
        self._record(f"data/{self._number}", as_bytes(tensor))
        self._number += 1

    def _record(self, name: str, content: bytes | memoryview) -> None:
        entry = zipfile.ZipInfo(f"{self._archive}/{name}")
        is_large = len(content) >= zipfile.ZIP64_LIMIT
        header = 30 + len(entry.filename) + (20 if is_large else 0)
        padding = -(self._base.tell() + header + 4) % ALIGNMENT
        entry.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
        entry.file_size = len(content)
        with self._zip.open(entry, "w", force_zip64=is_large) as stream:
            stream.write(content)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            assert self._number == len(self._storages), "a tensor was announced and not written"
            self._record("version", b"3\n")
            self._record(".data/serialization_id", b"0" * 40)
            self._zip.close()
        else:
            self._zip.fp = None  # or it would try to finish the archive once more, and complain
