"""The current weights of a Megatron engine as a stream of whole Hugging Face tensors.

This is the way to a rollout engine: nothing is written, and no rank ever holds more than the one
tensor that is under way, and the shards it is made of.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from alignctl.engines.device import DEVICE
from alignctl.models.adapters import adapter_shapes, add_adapters, group_by_weight
from alignctl.models.families import weight_map
from alignctl.models.weight_map import Replicated, Vocabulary, Weight, full_shape

if TYPE_CHECKING:
    from alignctl.engines.megatron.engine import MegatronEngine


def hf_weights(
    engine: "MegatronEngine", dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield each Hugging Face tensor, whole, on every rank, in model order, adapters merged.

    Collective: all ranks go through the stream together, to its end.

    Args:
        engine: The engine, between two steps; its head is an output layer or tied to the embedding.
        dtype: Of the tensors; None for the engine's own. Rounded once, after merging.

    Yields:
        Name and tensor on the engine's device. The tensor may be kept, but not written to: where
        nothing is cut, it is a parameter of the model itself.
    """
    engine.gather_weights()
    model, lora = engine.architecture, engine.lora
    mine = {engine.global_name(name): p.detach() for name, p in engine.model.named_parameters()}
    own = group_by_weight(model, lora) if lora else {}
    shapes = adapter_shapes(model, lora) if lora else {}
    for name, row in weight_map(model, engine.head).items():
        full = _whole(engine, mine, row, _shape(engine, row))
        if lora and name in own:
            keys = [key for each in own[name] for key in each.names]
            tensors = {key: _whole(engine, mine, engine.rows[key], shapes[key]) for key in keys}
            full = add_adapters(full, row, model, lora, own[name], tensors)
        full = full.to(dtype or engine.dtype)
        yield from zip(row.hf, row.layout.split(full, model), strict=True)


def _whole(
    engine: "MegatronEngine", mine: dict[str, Tensor], row: Weight, shape: tuple[int, ...]
) -> Tensor:
    """Gather one full tensor on the stage that has it, and send it to the other ranks."""
    stage = _stage(engine, row)
    if engine.groups.pp.rank() == stage:
        full = _gather(engine, mine[row.megatron], row)
    else:
        full = torch.empty(shape, dtype=engine.dtype, device=DEVICE)
    if engine.parallel.pp > 1:
        full = full.contiguous()
        dist.broadcast(full, group=engine.groups.pp, group_src=stage)
    return full


def _gather(engine: "MegatronEngine", shard: Tensor, row: Weight) -> Tensor:
    if engine.parallel.tp == 1 or isinstance(row.layout, Replicated):
        return shard
    shards = [torch.empty_like(shard) for _ in range(engine.parallel.tp)]
    dist.all_gather(shards, shard.contiguous(), group=engine.groups.tp)
    return row.layout.unshard(shards)


def _stage(engine: "MegatronEngine", row: Weight) -> int:
    """Find the pipeline stage that has a tensor; of a tied embedding, the first."""
    if row.place == "layer":
        layer = int(row.megatron.removeprefix("decoder.layers.").partition(".")[0])
        return layer // (engine.architecture.num_layers // engine.parallel.pp)
    return 0 if row.place == "embedding" else engine.parallel.pp - 1


def _shape(engine: "MegatronEngine", row: Weight) -> tuple[int, ...]:
    model = engine.architecture
    shape = full_shape(row, model)
    if isinstance(row.layout, Vocabulary):
        return (model.padded_vocab_size(engine.parallel.tp), *shape[1:])
    return shape
