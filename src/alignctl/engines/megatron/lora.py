"""What is trained beside frozen weights, described for Megatron's distributed checkpoints.

Megatron's own description stacks layers and knows nothing of adapters; here the weight map tells
how a tensor is cut, and each layer has a tensor of its own.
"""

from collections.abc import Callable, Mapping

from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.utils import (
    make_sharded_tensor_for_checkpoint,
    make_tp_sharded_tensor_for_checkpoint,
)

from alignctl.models.megatron import LanguageModel
from alignctl.models.weight_map import Sliced, Weight


def describe_trained(
    model: LanguageModel,
    groups: ProcessGroupCollection,
    rows: Mapping[str, Weight],
    global_name: Callable[[str], str],
) -> dict[str, ShardedTensor]:
    """Describe this rank's adapters, and its score head, as Megatron saves and loads them.

    Args:
        model: This rank's part of the model.
        groups: Its process groups.
        rows: The weight map of the whole.
        global_name: Tells a parameter's name in the whole model.
    """
    found = {}
    among = {"tp_group": groups.tp, "dp_cp_group": groups.dp_cp}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = global_name(name)
            layout = rows[key].layout
            found[name] = (
                make_tp_sharded_tensor_for_checkpoint(parameter, key, tp_axis=layout.dim, **among)
                if isinstance(layout, Sliced)
                else make_sharded_tensor_for_checkpoint(parameter, key, **among)
            )
    return found
