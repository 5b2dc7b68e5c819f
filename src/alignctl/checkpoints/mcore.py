"""Megatron-Core's distributed format, written and read tensor by tensor in one process.

The format is PyTorch's distributed checkpoint with Megatron's names. It does not depend on the
parallel layout: the tensors of all layers are stacked, `[L, ...]`, and each layer is one chunk,
so any TP and PP can read it. Norms have the names that Transformer Engine's fused layers give
them, which is what every Megatron-Core model asks for.
"""

import json
import math
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from alignctl.checkpoints import torch_file, torch_writer
from alignctl.checkpoints.lazy import LazyTensor, Spec
from alignctl.checkpoints.manifest import METADATA, Recorder
from alignctl.checkpoints.mcore_index import read_metadata
from alignctl.errors import UserError

COMMON = "common.pt"
"""What is not sharded; Megatron-LM keeps its arguments in it."""

WEIGHTS = "__0_0.distcp"
"""The file of the first (and here only) writer."""

_LAYER = re.compile(r"^(decoder\.layers)\.(\d+)\.(.*)$")
_STORED_NAMES = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}
_PARTS = ("embedding.", "decoder.", "output_layer.", "score.", "pooler_head.")
"""How the names of weights begin; optimizers and random states have others."""

_MAX_LAYERS = 10_000
"""More are a damaged index, not a model."""

_LINEARS = (
    "self_attention.linear_qkv",
    "self_attention.linear_proj",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)
"""What Megatron-Core keeps an extra state of, which is None but for 8-bit floats."""


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


def plain_name(stored: str) -> str:
    """Our name of a parameter that has Transformer Engine's, with or without a layer number."""
    for ours, theirs in _STORED_NAMES.items():
        stored = stored.replace(theirs, ours)
    return stored


# ---- writing ----


def write(
    folder: Path,
    specs: Mapping[str, Spec],
    tensors: Iterator[Tensor],
    *,
    num_layers: int,
    recorder: Recorder,
) -> None:
    """Writes Megatron tensors in the distributed format, one in memory at a time.

    Args:
        folder: An empty folder.
        specs: Full tensors (vocabulary padding included) by Megatron parameter name, in the
            order in which they come.
        tensors: The tensors themselves.
        num_layers: Layers of the model.
        recorder: Opens the file with the weights.
    """
    contents: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    places: dict[MetadataIndex, _StorageInfo] = {}
    with recorder.open(folder / WEIGHTS) as stream:
        for name, spec in specs.items():
            index, size = _describe(name, spec, num_layers, contents)
            start = stream.tell()
            with torch_writer.Writer(stream, Spec(size, spec.dtype)) as writer:
                writer.write(next(tensors).reshape(size))
            places[index] = _StorageInfo(WEIGHTS, start, stream.tell() - start)
        for layer in range(num_layers):
            for linear in _LINEARS:
                key = f"decoder.layers.{linear}._extra_state/shard_{layer}_{num_layers}"
                start = stream.tell()
                with torch_writer.Writer(stream, [None]):
                    pass
                contents[key] = BytesStorageMetadata()
                places[MetadataIndex(key)] = _StorageInfo(WEIGHTS, start, stream.tell() - start)
    index_bytes = pickle.dumps(Metadata(contents, None, places))
    (folder / METADATA).write_bytes(index_bytes)
    # What Megatron-Core's own save puts beside the tensors.
    torch.save({}, folder / COMMON)
    backend = {
        "sharded_backend": "torch_dist",
        "sharded_backend_version": 1,
        "common_backend": "torch",
        "common_backend_version": 1,
    }
    (folder / "metadata.json").write_text(json.dumps(backend), encoding="utf-8")


def _describe(
    name: str,
    spec: Spec,
    num_layers: int,
    contents: dict[str, TensorStorageMetadata | BytesStorageMetadata],
) -> tuple[MetadataIndex, tuple[int, ...]]:
    """Enters a tensor into the index; returns its place there and its shape in the file."""
    key, layer = stored_name(name)
    size = spec.shape if layer is None else (1, *spec.shape)
    whole = spec.shape if layer is None else (num_layers, *spec.shape)
    offsets = torch.Size([layer or 0, *[0] * (len(size) - 1)])
    entry = contents.setdefault(
        key,
        TensorStorageMetadata(TensorProperties(dtype=spec.dtype), torch.Size(whole), []),
    )
    assert isinstance(entry, TensorStorageMetadata)
    entry.chunks.append(ChunkStorageMetadata(offsets, torch.Size(size)))
    return MetadataIndex(key, offsets, index=len(entry.chunks) - 1), size


# ---- reading ----


def read(folder: Path) -> dict[str, LazyTensor]:
    """The full tensors of the model by our Megatron names, vocabulary padding included.

    Raises:
        UserError: The index is missing, damaged, or would import something beyond its classes.
    """
    metadata = read_metadata(folder)
    _check_places(folder, metadata)
    found: dict[str, LazyTensor] = {}
    for key, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata) or not key.startswith(_PARTS):
            continue
        size = tuple(entry.size)
        if not key.startswith("decoder.layers.") or _LAYER.match(key):
            found[plain_name(key)] = _lazy(folder, metadata, key, None, size)
            continue
        if not size or size[0] > _MAX_LAYERS:
            raise UserError(f"{folder / METADATA}: {key} is of shape {list(size)}: no layers")
        for layer in range(size[0]):
            name = key.replace("decoder.layers.", f"decoder.layers.{layer}.", 1)
            found[plain_name(name)] = _lazy(folder, metadata, key, layer, size[1:])
    return found


def _check_places(folder: Path, metadata: Metadata) -> None:
    """Two chunks at one place are a damaged index, which would give one tensor for another."""
    seen: dict[tuple[str, int], MetadataIndex] = {}
    for index, place in metadata.storage_data.items():
        other = seen.setdefault((str(place.relative_path), place.offset), index)
        if other is not index:
            raise UserError(
                f"{folder / METADATA}: {index.fqn} and {other.fqn} lie at the same place",
                "the index is damaged: copy the checkpoint again, or use an older one",
            )


def _lazy(
    folder: Path, metadata: Metadata, key: str, layer: int | None, shape: tuple[int, ...]
) -> LazyTensor:
    entry = metadata.state_dict_metadata[key]
    assert isinstance(entry, TensorStorageMetadata)
    dtype = entry.properties.dtype
    chunks = [
        chunk
        for chunk in entry.chunks
        if layer is None or chunk.offsets[0] <= layer < chunk.offsets[0] + chunk.sizes[0]
    ]

    def make() -> Tensor:
        # All are looked at before memory is taken for what they claim to be.
        parts = [_chunk(folder, metadata, key, chunk) for chunk in chunks]
        inner = slice(0 if layer is None else 1, None)
        if sum(math.prod(part.shape[inner]) for part in parts) != math.prod(shape):
            raise UserError(
                f"{folder}: {key} is incomplete" + ("" if layer is None else f" for layer {layer}"),
                "the checkpoint is damaged: copy it again, or use an older one",
            )

        def piece(number: int) -> Tensor:
            made = parts[number].make()
            return made if layer is None else made[layer - chunks[number].offsets[0]]

        if len(parts) == 1:
            return piece(0)
        # Where chunks overlap, they leave holes: those are not numbers, and so refused.
        whole = torch.full(shape, torch.nan, dtype=dtype)
        for number, chunk in enumerate(chunks):
            places = zip(chunk.offsets[inner], chunk.sizes[inner], strict=True)
            whole[tuple(slice(start, start + size) for start, size in places)] = piece(number)
        return whole

    return LazyTensor(shape, dtype, make, f"{folder}: {key}")


def _chunk(folder: Path, metadata: Metadata, key: str, chunk: ChunkStorageMetadata) -> LazyTensor:
    """Finds a chunk, which is read whole; it is a file of `torch.save` within the file."""
    place = metadata.storage_data.get(MetadataIndex(key, chunk.offsets))
    if not isinstance(place, _StorageInfo):
        raise UserError(f"{folder / METADATA}: {key} has a chunk without a place")
    if Path(place.relative_path).name != place.relative_path:
        raise UserError(f"{folder / METADATA}: {place.relative_path} lies outside the folder")
    file = folder / place.relative_path
    tensor = torch_file.read(file, start=place.offset, length=place.length)
    entry = metadata.state_dict_metadata[key]
    assert isinstance(entry, TensorStorageMetadata)
    expected = (tuple(chunk.sizes), entry.properties.dtype)
    if not isinstance(tensor, LazyTensor) or (tensor.shape, tensor.dtype) != expected:
        raise UserError(f"{file}: {key}: a chunk is not the tensor that the index tells of")
    return tensor
