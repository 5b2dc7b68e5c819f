"""What is trained beside frozen weights, described for Megatron's distributed checkpoints.

Megatron's own description stacks layers and knows nothing of adapters; here the weight map tells
how a tensor is cut, and each layer has a tensor of its own.
"""

from typing import TYPE_CHECKING

from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.utils import (
    make_sharded_tensor_for_checkpoint,
    make_tp_sharded_tensor_for_checkpoint,
)

from alignctl.models.weight_map import Sliced

if TYPE_CHECKING:
    from alignctl.engines.megatron import MegatronEngine


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
