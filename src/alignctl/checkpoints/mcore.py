"""Megatron-Core's distributed format, written and read tensor by tensor in one process.

The format is PyTorch's distributed checkpoint with Megatron's names. It does not depend on the
parallel layout: the tensors of all layers are stacked, `[L, ...]`, and each layer is one chunk,
so any TP and PP can read it. Norms have the names that Transformer Engine's fused layers give
them, which is what every Megatron-Core model asks for.
"""

import io
import json
import math
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)

from alignctl.errors import UserError

_LAYER = re.compile(r"^(decoder\.layers)\.(\d+)\.(.*)$")
_STORED_NAMES = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}
METADATA = ".metadata"


def stored_name(megatron: str) -> tuple[str, int | None]:
    """The key of a parameter in the distributed format, and its index in the stack of layers."""
    match = _LAYER.match(megatron)
    if match is None:
        return megatron, None
    prefix, layer, rest = match.groups()
    for ours, theirs in _STORED_NAMES.items():
        if rest.startswith(ours):
            rest = theirs + rest.removeprefix(ours)
    return f"{prefix}.{rest}", int(layer)


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is made only when it is written.

    Attributes:
        shape: Its shape (of one layer).
        make: Produces it, in the dtype that is to be written.
    """

    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class _LazyPlanner(DefaultSavePlanner):
    """Plans one chunk per tensor and layer, and makes each just before it is written."""

    def __init__(
        self,
        tensors: Mapping[str, LazyTensor],
        num_layers: int,
        dtype: torch.dtype,
        on_bytes: Callable[[int], None],
    ) -> None:
        super().__init__(flatten_state_dict=False)
        self._tensors = tensors
        self._num_layers = num_layers
        self._dtype = dtype
        self._on_bytes = on_bytes
        self._sources: dict[MetadataIndex, str] = {}

    def create_local_plan(self) -> SavePlan:
        items = []
        for name, tensor in self._tensors.items():
            key, layer = stored_name(name)
            shape = torch.Size(tensor.shape)
            if layer is None:
                offsets, sizes, whole = torch.Size([0] * len(shape)), shape, shape
            else:
                offsets = torch.Size([layer] + [0] * len(shape))
                sizes, whole = torch.Size([1, *shape]), torch.Size([self._num_layers, *shape])
            index = MetadataIndex(key, offsets, index=layer or 0)
            self._sources[index] = name
            items.append(
                WriteItem(
                    index=index,
                    type=WriteItemType.SHARD,
                    tensor_data=TensorWriteData(
                        chunk=ChunkStorageMetadata(offsets, sizes),
                        properties=TensorProperties(dtype=self._dtype),
                        size=whole,
                    ),
                )
            )
        self.plan = SavePlan(items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        tensor = self._tensors[self._sources[write_item.index]].make()
        assert write_item.tensor_data is not None
        self._on_bytes(tensor.nbytes)
        return tensor.contiguous().reshape(write_item.tensor_data.chunk.sizes)


def write(
    folder: Path,
    tensors: Mapping[str, LazyTensor],
    *,
    num_layers: int,
    dtype: torch.dtype,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> None:
    """Writes Megatron tensors in the distributed format, one in memory at a time.

    Args:
        folder: An empty folder.
        tensors: Full tensors (vocabulary padding included) by Megatron parameter name.
        num_layers: Layers of the model.
        dtype: What every tensor is made in.
        on_bytes: Called with the size of each tensor as it is written.
    """
    planner = _LazyPlanner(tensors, num_layers, dtype, on_bytes)
    writer = FileSystemWriter(folder, single_file_per_rank=True, sync_files=True)
    # The steps of `torch.distributed.checkpoint.save` for one process, without its wrapping of
    # errors: a damaged source file is to be reported as what it is.
    planner.set_up_planner({}, is_coordinator=True)
    writer.set_up_storage_writer(True)
    plan = writer.prepare_local_plan(planner.create_local_plan())
    plans, metadata = planner.create_global_plan([plan])
    plan = planner.finish_plan(writer.prepare_global_plan(plans)[0])
    results = writer.write_data(plan, planner).wait()
    writer.finish(metadata, [results])
    # What Megatron-Core's own save puts beside the tensors.
    torch.save({}, folder / "common.pt")
    backend = {
        "sharded_backend": "torch_dist",
        "sharded_backend_version": 1,
        "common_backend": "torch",
        "common_backend_version": 1,
    }
    (folder / "metadata.json").write_text(json.dumps(backend), encoding="utf-8")


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


class McoreFolder:
    """Full tensors of a distributed checkpoint, read one at a time, without a process group."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._metadata = read_metadata(path)

    def shape(self, megatron: str) -> tuple[int, ...]:
        """The stored shape of a parameter, without the stack of layers."""
        key, layer = stored_name(megatron)
        size = tuple(self._entry(key).size)
        return size if layer is None else size[1:]

    def numel(self, megatron: str) -> int:
        """Number of elements of a parameter."""
        return math.prod(self.shape(megatron))

    def tensor(self, megatron: str) -> Tensor:
        """Reads a parameter whole: the chunks of all tensor-parallel ranks put together."""
        key, layer = stored_name(megatron)
        entry = self._entry(key)
        whole: Tensor | None = None
        filled = 0
        for chunk in entry.chunks:
            if (
                layer is not None
                and not chunk.offsets[0] <= layer < chunk.offsets[0] + chunk.sizes[0]
            ):
                continue
            part = self._chunk(key, chunk)
            if part.shape != chunk.sizes:
                raise UserError(f"{self.path}: {key}: a chunk has shape {list(part.shape)}")
            offsets, sizes = list(chunk.offsets), list(chunk.sizes)
            if layer is not None:
                part, offsets, sizes = part[layer - offsets[0]], offsets[1:], sizes[1:]
            if whole is None:
                if sizes == list(self.shape(megatron)):
                    return part
                whole = part.new_empty(self.shape(megatron))
            whole[tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))] = part
            filled += part.numel()
        if whole is None or filled != whole.numel():
            raise UserError(f"{self.path}: {key} is incomplete for layer {layer}")
        return whole

    def _entry(self, key: str) -> TensorStorageMetadata:
        entry = self._metadata.state_dict_metadata.get(key)
        if not isinstance(entry, TensorStorageMetadata):
            raise UserError(f"{self.path}: no tensor {key} in the checkpoint")
        return entry

    def _chunk(self, key: str, chunk: ChunkStorageMetadata) -> Tensor:
        info = self._metadata.storage_data[MetadataIndex(key, chunk.offsets)]
        file = self.path / info.relative_path
        if file.parent != self.path:
            raise UserError(f"{self.path / METADATA}: {info.relative_path} lies outside the folder")
        try:
            with file.open("rb") as stream:
                stream.seek(info.offset)
                content = io.BytesIO(stream.read(info.length))
            return torch.load(content, weights_only=True)  # type: ignore[no-any-return]
        except Exception as error:  # torch.load raises many kinds on damaged bytes
            raise UserError(f"{file}: {key} cannot be read: {error}") from error
