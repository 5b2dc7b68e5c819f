"""The way of a sharded state from the disk: described by Megatron, read so that nothing is run.

Megatron-Core and torch unpickle `common.pt`, and whatever an index calls bytes, without a look at
what it asks for. Here the index, the objects and the tensors of a checkpoint all pass the readers
of `alignctl.checkpoints`, as they do in a conversion.
"""

from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_inplace, merge
from megatron.core.dist_checkpointing.mapping import (
    ShardedBase,
    ShardedObject,
    ShardedTensor,
    apply_factory_merges,
)
from megatron.core.dist_checkpointing.state_dict_utils import load_preprocess
from megatron.core.dist_checkpointing.utils import extract_sharded_base

from alignctl.checkpoints.formats import mcore, mcore_index
from alignctl.checkpoints.formats.mcore_index import Index
from alignctl.checkpoints.pickles import torch_file
from alignctl.checkpoints.tensors.dtypes import DType
from alignctl.checkpoints.tensors.lazy import LazyTensor
from alignctl.errors import UserError


def load(state: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """Load what a checkpoint holds of a state; write tensors into those that are described.

    Args:
        state: This rank's part, described.
        checkpoint: The folder.

    Raises:
        UserError: Something is missing, of another shape or kind, damaged, or would run code.
    """
    index = mcore_index.read_all(checkpoint)
    sharded, own, factories = load_preprocess(state)
    sharded, _ = extract_sharded_base(sharded)
    loaded = _made(torch_file.read(checkpoint / mcore.COMMON), checkpoint / mcore.COMMON)
    parts = dict_list_map_inplace(lambda part: _read(part, index, checkpoint), sharded)
    try:
        merge(merge(loaded, own), parts)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{checkpoint / mcore.COMMON}: not what belongs to this run's optimizer: {error!r}",
            "the file is damaged, or of another program: use an older checkpoint",
        ) from error
    found: dict[str, Any] = apply_factory_merges(loaded, factories)
    return found


def _read(part: ShardedBase, index: Index, checkpoint: Path) -> Any:
    if isinstance(part, ShardedObject):
        return _object(part, index, checkpoint)
    assert isinstance(part, ShardedTensor)
    entry = index.tensors.get(part.key)
    if entry is None or entry.shape != tuple(part.global_shape):
        found = "is not in it" if entry is None else f"is of shape {list(entry.shape)}"
        raise UserError(
            f"{checkpoint}: {part.key} {found}, but this run keeps {list(part.global_shape)}",
            "the checkpoint is damaged, or of another program: use an older one",
        )
    target = part.data
    if target is None:
        target = torch.empty(part.local_shape, dtype=part.dtype)
    shape = (1,) * part.prepend_axis_num + tuple(part.local_shape)
    stored = mcore.part(checkpoint, part.key, entry, tuple(part.global_offset), shape)
    with torch.no_grad():
        target.copy_(stored.make().reshape(target.shape))
    return target


def _object(part: ShardedObject, index: Index, checkpoint: Path) -> Any:
    place = index.others.get(part.unique_key)
    if place is None:
        raise UserError(
            f"{checkpoint}: {part.unique_key} is not in it",
            "the checkpoint is damaged, or of another program: use an older one",
        )
    where = mcore.file_of(checkpoint, place)
    stored = torch_file.read(where, start=place.start, length=place.length)
    if not isinstance(stored, list) or len(stored) != 1:
        raise UserError(f"{where}: {part.unique_key} is not an object of Megatron-Core's")
    return _made(stored[0], where)


def _made(tree: Any, where: Path) -> Any:
    """Make tensors and torch's own types of what a tree describes; all else has to be plain."""
    if isinstance(tree, LazyTensor):
        return tree.make()
    if isinstance(tree, DType):
        return tree.torch
    if isinstance(tree, dict):
        return {_made(key, where): _made(value, where) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_made(each, where) for each in tree)
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise UserError(
        f"{where}: a {type(tree).__name__} is in it, which is no part of an optimizer's state",
        "the file is damaged, or of another program: use an older checkpoint",
    )
