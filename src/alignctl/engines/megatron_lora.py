"""What a checkpoint of adapters needs beyond others: its base, and what is trained, described.

Megatron's own description stacks layers and knows nothing of adapters; here the weight map tells
how a tensor is cut, and each layer has a tensor of its own.
"""

from typing import TYPE_CHECKING

import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.utils import (
    make_sharded_tensor_for_checkpoint,
    make_tp_sharded_tensor_for_checkpoint,
)

from alignctl.checkpoints import manifest
from alignctl.checkpoints.identity import recorded_files, weight_files
from alignctl.checkpoints.manifest import Base, FileRecord
from alignctl.checkpoints.source import Source
from alignctl.models.weight_map import Sliced

if TYPE_CHECKING:
    from alignctl.engines.megatron import MegatronEngine


def base_of(source: Source) -> Base:
    """What a checkpoint with adapters will say of the model below them; all ranks share the work.

    The weight files of other programs are read once: they have no checksums yet.
    """
    mine = recorded_files(source)
    if source.manifest is None:
        names = weight_files(source)[dist.get_rank() :: dist.get_world_size()]
        mine = {name: manifest.record(source.path / name) for name in names}
    return Base(path=str(source.path.resolve()), files=gathered(mine))


def gathered(mine: dict[str, FileRecord]) -> dict[str, FileRecord]:
    """All ranks' records together."""
    everybody: list[dict[str, FileRecord]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(everybody, mine)
    return {name: found for records in everybody for name, found in records.items()}


def trained_state(engine: "MegatronEngine") -> dict[str, ShardedTensor]:
    """This rank's adapters, and its score head, as Megatron saves and loads them."""
    found = {}
    for name, parameter in engine.model.named_parameters():
        if parameter.requires_grad:
            key = engine.global_name(name)
            layout = engine.rows[key].layout
            found[name] = (
                make_tp_sharded_tensor_for_checkpoint(parameter, key, tp_axis=layout.dim)
                if isinstance(layout, Sliced)
                else make_sharded_tensor_for_checkpoint(parameter, key)
            )
    return found
