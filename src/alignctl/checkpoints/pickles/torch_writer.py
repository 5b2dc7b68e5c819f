"""Writes one file of `torch.save` as a stream: a description first, then one tensor at a time.

torch's own writer wants every tensor in memory at once, and ends the process when the disk is full.
"""

import struct
import zipfile
from argparse import Namespace
from typing import Any, BinaryIO

from isal import isal_zlib

from alignctl.checkpoints.pickles import restricted_pickle
from alignctl.checkpoints.pickles.restricted_pickle import make_global
from alignctl.checkpoints.pickles.torch_names import STORAGE_OF
from alignctl.checkpoints.tensors.dtypes import Bits, DType, view_bytes
from alignctl.checkpoints.tensors.lazy import Spec

ALIGNMENT = 64
"""Storages begin at a multiple of this, as torch has them, so that they can be mapped."""

_REBUILD = make_global("torch._utils", "_rebuild_tensor_v2")
_HOOKS = make_global("collections", "OrderedDict")


class _Storage:
    """A storage that the file will hold, as its description names it."""

    def __init__(self, key: int, spec: Spec) -> None:
        kind = make_global("torch", STORAGE_OF[spec.dtype.name])
        self.identity = ("storage", kind, str(key), "cpu", spec.numel)


def _identity(obj: object) -> object:
    return obj.identity if isinstance(obj, _Storage) else None


def _tensor(key: int, spec: Spec) -> restricted_pickle.Call:
    """Describe a tensor: contiguous, alone in its storage."""
    return _REBUILD(_Storage(key, spec), 0, spec.shape, spec.strides, False, _HOOKS())


class _From:
    """A file as seen from where an archive begins in it: `zipfile` writes absolute offsets.

    It cannot seek: everything is written in order.
    """

    def __init__(self, stream: BinaryIO, start: int) -> None:
        self._stream, self._start = stream, start
        self.write, self.flush = stream.write, stream.flush

    def tell(self) -> int:
        return self._stream.tell() - self._start

    def close(self) -> None:
        """Leave the file open: it is the caller's."""


class Writer:
    """Writes a tree of objects in which each `Spec` announces a tensor, then those tensors.

    The file is what `torch.save` writes for the same tree. Use it as a context manager.
    """

    def __init__(self, stream: BinaryIO, tree: Any, *, archive: str = "archive") -> None:
        """Write the description.

        Args:
            stream: A file, written from where it stands; the caller closes it.
            tree: Dicts, lists, namespaces, numbers, text, types and `Spec`s.
            archive: Name of the folder in the archive; torch takes the file's.
        """
        self._archive = archive
        self._base = _From(stream, stream.tell())
        self._zip = zipfile.ZipFile(self._base, "w", zipfile.ZIP_STORED)
        self._number = 0
        self._storages: list[Spec] = []
        self._record("data.pkl", restricted_pickle.dumps(self._describe(tree), _identity))
        self._record("byteorder", b"little")

    def _describe(self, tree: Any) -> Any:
        if isinstance(tree, Spec):
            self._storages.append(tree)
            return _tensor(len(self._storages) - 1, tree)
        if isinstance(tree, DType):
            return make_global("torch", tree.name)
        if isinstance(tree, Namespace):
            return Namespace(**self._describe(vars(tree)))
        if isinstance(tree, dict):
            return {key: self._describe(branch) for key, branch in tree.items()}
        if isinstance(tree, list):
            return [self._describe(branch) for branch in tree]
        return tree

    def write(self, bits: Bits) -> None:
        """Write the next tensor."""
        spec = self._storages[self._number]
        assert (bits.shape, bits.dtype) == (spec.shape, spec.dtype.bits)
        self._record(f"data/{self._number}", view_bytes(bits))
        self._number += 1

    def _record(self, name: str, content: bytes | memoryview) -> None:
        entry = zipfile.ZipInfo(f"{self._archive}/{name}")
        entry.header_offset = self._base.tell()
        is_large = len(content) >= zipfile.ZIP64_LIMIT
        header = 30 + len(entry.filename) + (20 if is_large else 0)
        padding = -(entry.header_offset + header + 4) % ALIGNMENT
        entry.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
        entry.file_size = entry.compress_size = len(content)
        # `zipfile` would take the checksum itself, with a function that is eight times as slow.
        entry.CRC = isal_zlib.crc32(content)
        self._base.write(entry.FileHeader(zip64=is_large))
        self._base.write(content)
        self._zip.infolist().append(entry)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            assert self._number == len(self._storages), "a tensor was announced and not written"
            self._record("version", b"3\n")
            self._record(".data/serialization_id", b"0" * 40)
            self._zip.start_dir = self._base.tell()
            self._zip.close()
        else:
            self._zip.fp = None  # or it would try to finish the archive once more, and complain
