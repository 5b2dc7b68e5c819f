"""The index of Megatron-Core's distributed format, a pickle, read without trust."""

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata

from alignctl.errors import UserError

METADATA = ".metadata"

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
        metadata = _MetadataUnpickler(io.BytesIO(path.read_bytes())).load()
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
