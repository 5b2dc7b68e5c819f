"""One file of `torch.save`, read lazily and safely.

Such a file is a zip archive: a pickle that describes the objects, and beside it the bytes of each
storage, uncompressed. Only the description is unpickled, by torch's own restricted unpickler, with
tensors on the meta device, which have no memory but know their offset in the file.
"""

import argparse
import io
import pickle
import types
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from alignctl.checkpoints.lazy import LazyTensor, read_bytes, unreadable
from alignctl.checkpoints.torch_archive import Archive, open_archive
from alignctl.errors import UserError


class Inert:
    """Stands for an object of another program that is of no interest: it only keeps its parts."""

    def __init__(self, *parts: object) -> None:
        self.parts = parts

    def __setstate__(self, state: object) -> None:
        self.state = state


@dataclass(frozen=True)
class FlatTensor(LazyTensor):
    """A tensor of one dimension, of which a part can be read alone.

    Attributes:
        make_part: Reads the elements from one place up to another. The checksum is that of the
            whole, which is read once for it.
    """

    make_part: Callable[[int, int], Tensor]


def narrow(tensor: LazyTensor, start: int, stop: int) -> LazyTensor:
    """The elements of a tensor of one dimension from one place up to another."""
    if isinstance(tensor, FlatTensor):
        part = tensor.make_part
        return LazyTensor((stop - start,), tensor.dtype, lambda: part(start, stop), tensor.where)
    return tensor.map((stop - start,), lambda whole: whole[start:stop])


HARMLESS = (
    # The state of random generators.
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.dtypes.UInt32DType",
    "numpy.dtypes.Float64DType",
    "numpy.dtypes.Int64DType",
    "_codecs.encode",
    # In the args of Megatron-LM.
    "megatron.core.enums.ModelType",
    "megatron.core.enums.Fp8Recipe",
    "megatron.core.enums.Fp4Recipe",
    "megatron.core.rerun_state_machine.RerunDiagnostic",
    "megatron.core.rerun_state_machine.RerunMode",
    "megatron.core.rerun_state_machine.RerunState",
    "megatron.core.transformer.enums.AttnBackend",
    "megatron.core.transformer.enums.AttnMaskType",
    "megatron.core.transformer.enums.AttnType",
    "megatron.core.transformer.enums.LayerType",
    "megatron.core.transformer.enums.ModelType",
    "megatron.model.enums.AttnMaskType",
    "megatron.model.enums.LayerType",
    "megatron.model.enums.ModelType",
    "megatron.model.enums.PositionEmbeddingType",
    "megatron.enums.ModelType",
    "megatron.enums.PositionEmbeddingType",
    # In those of DeepSpeed.
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer",
    "deepspeed.runtime.base_optimizer.DeepSpeedOptimizer",
    "deepspeed.utils.tensor_fragment.fragment_address",
    "deepspeed.utils.tensor_fragment.tensor_fragment",
    "pathlib.PosixPath",
    "datetime.timedelta",
)
"""Names that such files hold beside tensors; whatever they are, they are read as `Inert`."""

_KEPT = (argparse.Namespace, types.SimpleNamespace)


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
    """What a file holds, with a `LazyTensor` in place of each tensor; nothing of it is executed.

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
        with file.open("rb") as stream:
            whole = stream.seek(0, io.SEEK_END)
            part = _Part(stream, start, whole - start if length is None else length)
            return _read(file, start, part)
    except OSError as error:
        raise unreadable(file, "PyTorch", error) from error


def _read(file: Path, start: int, part: _Part) -> Any:
    stream = cast("BinaryIO", part)
    try:
        archive = Archive(file, start, {}, has_checksums=False)
        if is_archive := zipfile.is_zipfile(stream):
            archive = open_archive(file, start, stream)
        part.seek(0)
        # Of what is loaded to the meta device, torch reads no byte and keeps the place. Fake
        # tensors have it too, but their mode imports torch's compiler first: about a second.
        device = "meta" if is_archive else "cpu"
        with torch.serialization.safe_globals(_allowed()):
            tree = torch.load(stream, map_location=device, weights_only=True)
        return _lazy_tree(tree, archive, "")
    except UserError:
        raise
    except Exception as error:  # damaged bytes can raise anything
        raise _refusal(file, part, error) from error


def _allowed() -> list[Any]:
    return [*_KEPT, *((Inert, name) for name in HARMLESS)]


def _refusal(file: Path, part: _Part, error: Exception) -> UserError:
    """The error of a file that could not be read, with what it wanted to run."""
    if isinstance(error, pickle.UnpicklingError):
        part.seek(0)
        try:
            wanted = torch.serialization.get_unsafe_globals_in_checkpoint(cast("BinaryIO", part))
        except Exception:  # the description itself is damaged: the first error says more
            wanted = []
        known = {*HARMLESS, *(f"{kept.__module__}.{kept.__name__}" for kept in _KEPT)}
        if forbidden := sorted(set(wanted) - known):
            return _forbidden(file, forbidden[0])
    text = str(error)
    for mark in ("Unsupported global: GLOBAL ", "unsupported GLOBAL "):
        if mark in text:
            return _forbidden(file, text.split(mark, 1)[1].split()[0])
    lines = [line for line in text.splitlines() if line.strip()]
    # torch puts advice around what is wrong.
    short = lines[-2] if len(lines) > 1 and "documentation" in lines[-1] else "".join(lines[:1])
    return unreadable(file, "PyTorch", ValueError(short[:200] or repr(error)))


def _forbidden(file: Path, name: str) -> UserError:
    return UserError(
        f"{file}: refused: it asks for {name} when it is loaded, which no checkpoint needs",
        "it may have been made to run code; nothing of it was run. A file that you trust can be "
        "saved anew with tensors only, or as safetensors",
    )


def _lazy_tree(tree: Any, archive: Archive, at: str) -> Any:
    if isinstance(tree, Tensor) and tree.is_meta:
        return _lazy_tensor(tree, archive, at)
    if isinstance(tree, Tensor):
        whole = tree.detach()
        where = f"{archive.file}: {at}"
        return LazyTensor(tuple(tree.shape), tree.dtype, lambda: whole, where)
    if isinstance(tree, Mapping):
        return {
            key: _lazy_tree(branch, archive, f"{at}.{key}" if at else str(key))
            for key, branch in tree.items()
        }
    if isinstance(tree, list | tuple):
        return [_lazy_tree(branch, archive, f"{at}.{number}") for number, branch in enumerate(tree)]
    return tree


def _lazy_tensor(described: Tensor, archive: Archive, at: str) -> LazyTensor:
    """A tensor by its place in the file; of a view, only the bytes between its ends are read."""
    shape, dtype, stride = tuple(described.shape), described.dtype, described.stride()
    file, where = archive.file, f"{archive.file}: {at}" if at else str(archive.file)
    if not described.numel():
        return LazyTensor(shape, dtype, lambda: torch.empty(shape, dtype=dtype), where)
    begin = described.untyped_storage()._checkpoint_offset
    first = int(described.storage_offset()) * dtype.itemsize
    span = (1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))) * dtype.itemsize
    entry = archive.entries.get(begin) if begin is not None else None
    if begin is None or entry is None:
        raise unreadable(file, "PyTorch", ValueError(f"{at} has no place in the archive"))
    if first + span > entry.file_size:
        raise UserError(f"{where}: reaches beyond its storage of {entry.file_size} bytes")
    place = archive.start + begin + first

    def make_part(start: int, stop: int) -> Tensor:
        archive.verify(begin, where)
        size = dtype.itemsize
        return read_bytes(file, place + start * size, (stop - start) * size).view(dtype)

    def make() -> Tensor:
        if described.numel() * dtype.itemsize > entry.file_size:
            raise UserError(f"{where}: repeats the {entry.file_size} bytes of its storage")
        if span != entry.file_size:
            archive.verify(begin, where)
        content = read_bytes(file, place, span)
        if span == entry.file_size:
            archive.compare(begin, content, where)
        return content.view(dtype).as_strided(shape, stride)

    if stride == (1,):
        return FlatTensor(shape, dtype, make, where, make_part)
    return LazyTensor(shape, dtype, make, where)


def flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, LazyTensor]]:
    """The tensors of nested dicts, by their names joined with dots."""
    if isinstance(tree, LazyTensor):
        yield prefix, tree
    elif isinstance(tree, Mapping):
        for key, branch in tree.items():
            yield from flatten(branch, f"{prefix}.{key}" if prefix else str(key))
