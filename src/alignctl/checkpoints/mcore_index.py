"""The index of Megatron-Core's distributed format, a pickle, read without trust."""

import io
import pickle
import pickletools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from alignctl.checkpoints.manifest import METADATA
from alignctl.errors import UserError

_SAFE_CLASSES = {
    ("torch.distributed.checkpoint.metadata", name)
    for name in [
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ]
} | {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed.checkpoint.filesystem", "_StoragePrefix"),
    # Megatron-Core keeps the plans of all ranks in the index.
    *(
        ("torch.distributed.checkpoint.planner", name)
        for name in ("SavePlan", "TensorWriteData", "WriteItem", "WriteItemType")
    ),
    ("torch.distributed._shard.sharded_tensor.metadata", "TensorProperties"),
    ("torch.distributed._shard.sharded_tensor.metadata", "MEM_FORMAT_ENCODING"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("collections", "OrderedDict"),
}


class _MetadataUnpickler(pickle.Unpickler):
    """Reads the format's index, which is a pickle, without letting it name anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) not in _SAFE_CLASSES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed")
        return super().find_class(module, name)


def read_metadata(folder: Path) -> Metadata:
    """Reads the format's index safely.

    Raises:
        UserError: It is missing, damaged, or would import something beyond its own classes.
    """
    path = folder / METADATA
    try:
        content = path.read_bytes()
        _check_memory(content)
        metadata = _MetadataUnpickler(io.BytesIO(content)).load()
        if isinstance(metadata, Metadata):
            _check(metadata)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(
            f"{path}: not the index of a distributed checkpoint: {error}",
            "the file is damaged, or it was made to run code when loaded; it was not run",
        ) from error
    if not isinstance(metadata, Metadata):
        raise UserError(f"{path}: not the index of a distributed checkpoint")
    return metadata


def _check_memory(content: bytes) -> None:
    """Refuses a pickle that makes Python's reader set aside far more memory than it has bytes."""
    for instruction, number, _ in pickletools.genops(content):  # which compares lengths itself
        is_place = instruction.name in ("PUT", "LONG_BINPUT")
        if is_place and isinstance(number, int) and number > len(content):
            raise pickle.UnpicklingError(f"it asks for a table of {number} objects")


def _check(metadata: Metadata) -> None:
    """Makes sure that an index holds what its types promise.

    Raises:
        Exception: Of whatever type reading something else ends in.
    """
    for key, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            continue
        if not isinstance(entry.properties.dtype, torch.dtype):
            raise TypeError(f"{key} has no type")
        size = _sizes(entry.size)
        for chunk in entry.chunks:
            places = zip(_sizes(chunk.offsets), _sizes(chunk.sizes), size, strict=True)
            if any(offset + length > whole for offset, length, whole in places):
                raise ValueError(f"{key} has a chunk outside of it")
    for index, place in metadata.storage_data.items():
        if not isinstance(place, _StorageInfo):
            raise TypeError(f"{index.fqn} has no place")
        if not place.relative_path.isprintable():
            raise ValueError(f"{place.relative_path!r} is no file")
        _sizes((place.offset, place.length))


def _sizes(numbers: Iterable[object]) -> tuple[int, ...]:
    sizes = tuple(numbers)
    if not all(isinstance(number, int) and number >= 0 for number in sizes):
        raise ValueError(f"{sizes} are no sizes")
    return sizes  # type: ignore[return-value]
