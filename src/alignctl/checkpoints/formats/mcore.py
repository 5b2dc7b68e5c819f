"""Megatron-Core's distributed format, written and read tensor by tensor in one process.

The format is PyTorch's distributed checkpoint with Megatron's names. It does not depend on the
parallel layout: the tensors of all layers are stacked, `[L, ...]`, and each layer is one chunk,
so any TP and PP can read it. Norms have the names that Transformer Engine's fused layers give
them, which is what every Megatron-Core model asks for.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from alignctl.checkpoints.formats import mcore_index
from alignctl.checkpoints.formats.mcore_index import Chunk, Entry, Place
from alignctl.checkpoints.formats.wrapped_names import unwrap
from alignctl.checkpoints.manifest import METADATA, Recorder
from alignctl.checkpoints.pickles import torch_file, torch_writer
from alignctl.checkpoints.tensors.dtypes import Bits
from alignctl.checkpoints.tensors.lazy import LazyTensor, Spec
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
    """Return a parameter's key in the distributed format, and its index in the stack of layers."""
    match = _LAYER.match(megatron)
    if match is None:
        return megatron, None
    prefix, layer, rest = match.groups()
    for ours, theirs in _STORED_NAMES.items():
        if rest.startswith(ours):
            rest = theirs + rest.removeprefix(ours)
    return f"{prefix}.{rest}", int(layer)


def plain_name(stored: str) -> str:
    """Translate Transformer Engine's name of a parameter to ours, with or without layer number."""
    for ours, theirs in _STORED_NAMES.items():
        stored = stored.replace(theirs, ours)
    return stored


# ---- writing ----


def write(
    folder: Path,
    specs: Mapping[str, Spec],
    tensors: Iterator[Bits],
    *,
    num_layers: int,
    recorder: Recorder,
) -> None:
    """Write Megatron tensors in the distributed format, one in memory at a time.

    Args:
        folder: An empty folder.
        specs: Full tensors (vocabulary padding included) by Megatron parameter name, in the
            order in which they come.
        tensors: The tensors themselves.
        num_layers: Layers of the model.
        recorder: Opens the file with the weights.
    """
    entries: dict[str, Entry] = {}
    others: dict[str, Place] = {}
    with recorder.open(folder / WEIGHTS) as stream:
        for name, spec in specs.items():
            key, layer = stored_name(name)
            stack = () if layer is None else (1,)
            size = (*stack, *spec.shape)
            start = stream.tell()
            with torch_writer.Writer(stream, Spec(size, spec.dtype)) as writer:
                writer.write(next(tensors).reshape(size))
            offsets = (layer or 0, *[0] * (len(size) - 1))
            chunk = Chunk(offsets, size, Place(WEIGHTS, start, stream.tell() - start))
            whole = (*(num_layers for _ in stack), *spec.shape)
            entry = entries.setdefault(key, Entry(whole, spec.dtype, ()))
            entries[key] = replace(entry, chunks=(*entry.chunks, chunk))
        for layer in range(num_layers):
            for linear in _LINEARS:
                key = f"decoder.layers.{linear}._extra_state/shard_{layer}_{num_layers}"
                start = stream.tell()
                with torch_writer.Writer(stream, [None]):
                    pass
                others[key] = Place(WEIGHTS, start, stream.tell() - start)
    mcore_index.write(folder, entries, others)
    # What Megatron-Core's own save puts beside the tensors.
    with (folder / COMMON).open("wb") as stream, torch_writer.Writer(stream, {}):
        pass
    backend = {
        "sharded_backend": "torch_dist",
        "sharded_backend_version": 1,
        "common_backend": "torch",
        "common_backend_version": 1,
    }
    (folder / "metadata.json").write_text(json.dumps(backend), encoding="utf-8")


# ---- reading ----


def read(folder: Path) -> dict[str, LazyTensor]:
    """Open the full tensors of the model by our Megatron names, vocabulary padding included.

    Raises:
        UserError: The index is missing, damaged, or would import something beyond its classes.
    """
    found: dict[str, LazyTensor] = {}
    for stored, entry in mcore_index.read(folder).items():
        key = unwrap(stored)
        if not key.startswith(_PARTS) or "._extra_state" in key:
            continue
        for name, layer in _parts(folder, key, entry):
            if name in found:
                raise UserError(f"{folder / METADATA}: {stored} is in it under another name too")
            found[name] = _lazy(folder, stored, entry, layer)
    return found


def _parts(folder: Path, key: str, entry: Entry) -> Iterator[tuple[str, int | None]]:
    """Yield our names of what an entry holds, each with its place in the stack of layers."""
    if not key.startswith("decoder.layers.") or _LAYER.match(key):
        yield plain_name(key), None
        return
    if not entry.shape or entry.shape[0] > _MAX_LAYERS:
        raise UserError(f"{folder / METADATA}: {key} is of shape {list(entry.shape)}: no layers")
    for layer in range(entry.shape[0]):
        name = key.replace("decoder.layers.", f"decoder.layers.{layer}.", 1)
        yield plain_name(name), layer


def _lazy(folder: Path, key: str, entry: Entry, layer: int | None) -> LazyTensor:
    """Open a tensor, or that of one layer in a stack."""
    if layer is None:
        return part(folder, key, entry, (0,) * len(entry.shape), entry.shape)
    shape = entry.shape[1:]
    stack = part(folder, key, entry, (layer, *[0] * len(shape)), (1, *shape))
    return stack.map(shape, lambda layers: layers[0])


def part(
    folder: Path, key: str, entry: Entry, offsets: tuple[int, ...], shape: tuple[int, ...]
) -> LazyTensor:
    """Open a part of a tensor, put together from the chunks that it overlaps.

    Args:
        folder: The checkpoint.
        key: The tensor's.
        entry: What the index tells of it.
        offsets: Where the part begins, by dimension.
        shape: Of the part.
    """
    pieces = [
        (chunk, *both) for chunk in entry.chunks if (both := _intersect(offsets, shape, chunk))
    ]

    def bits() -> Bits:
        # All are looked at before memory is taken for what they claim to be.
        made = [_chunk(folder, key, entry, chunk) for chunk, _, _ in pieces]
        if sum(math.prod(sizes) for _, _, sizes in pieces) != math.prod(shape):
            raise UserError(
                f"{folder}: {key} is incomplete" + (f" at {list(offsets)}" if any(offsets) else ""),
                "the checkpoint is damaged: copy it again, or use an older one",
            )
        found = [
            tensor.bits()[_slices(starts, sizes, chunk.offsets)]
            for tensor, (chunk, starts, sizes) in zip(made, pieces, strict=True)
        ]
        if len(found) == 1:
            return found[0]
        # Where chunks overlap, they leave holes: those are not numbers, and so refused.
        whole = np.full(shape, np.iinfo(entry.dtype.bits).max, entry.dtype.bits)
        for piece, (_, starts, sizes) in zip(found, pieces, strict=True):
            whole[_slices(starts, sizes, offsets)] = piece
        return whole

    return LazyTensor(shape, entry.dtype, bits, f"{folder}: {key}")


def _intersect(
    offsets: tuple[int, ...], shape: tuple[int, ...], chunk: Chunk
) -> tuple[list[int], list[int]] | None:
    """Find where a part and a chunk overlap, offsets and sizes; None where they do not.

    Each layer is compared with the chunks of all: most are of another one, the first dimension.
    """
    starts, sizes = [], []
    for start, size, other, its in zip(offsets, shape, chunk.offsets, chunk.shape, strict=True):
        begin = start if start > other else other
        length = min(start + size, other + its) - begin
        if length <= 0:
            return None
        starts.append(begin)
        sizes.append(length)
    return starts, sizes


def _slices(
    starts: Sequence[int], sizes: Sequence[int], origin: Sequence[int]
) -> tuple[slice, ...]:
    """Compute where a piece lies in a tensor that begins at another place."""
    places = zip(starts, sizes, origin, strict=True)
    return tuple(slice(start - at, start - at + size) for start, size, at in places)


def file_of(folder: Path, place: Place) -> Path:
    """Return the file that a place is in.

    Raises:
        UserError: It is not in the folder.
    """
    if Path(place.file).name != place.file:
        raise UserError(f"{folder / METADATA}: {place.file} lies outside the folder")
    return folder / place.file


def _chunk(folder: Path, key: str, entry: Entry, chunk: Chunk) -> LazyTensor:
    """Open a chunk, a file of `torch.save` within the file; it is read whole."""
    if (place := chunk.place) is None:
        raise UserError(f"{folder / METADATA}: {key} has a chunk without a place")
    file = file_of(folder, place)
    tensor = torch_file.read(file, start=place.start, length=place.length)
    expected = (chunk.shape, entry.dtype)
    if not isinstance(tensor, LazyTensor) or (tensor.shape, tensor.dtype) != expected:
        raise UserError(f"{file}: {key}: a chunk is not the tensor that the index tells of")
    return tensor
