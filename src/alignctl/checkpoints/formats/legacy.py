"""Megatron-LM's checkpoints before the distributed format: a file of `torch.save` for each rank.

Two generations are read, and told apart by their names: the legacy model of Megatron-LM and of
PAI-Megatron-Patch, and Megatron-Core's names in the same folders (core_r0.8.0). The first is
written. Sources: Megatron-LM v1.0 to core_r0.8.0, ChatLearn v1.0.3, PAI-Megatron-Patch v0.5.0.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignctl.checkpoints.formats import legacy_names
from alignctl.checkpoints.formats.megatron_args import family_of
from alignctl.checkpoints.formats.rank_files import Grid, folder_name, grid
from alignctl.checkpoints.pickles import torch_file
from alignctl.checkpoints.pickles.restricted_pickle import Inert
from alignctl.checkpoints.tensors.dtypes import Bits
from alignctl.checkpoints.tensors.lazy import LazyTensor
from alignctl.config.sections import Model
from alignctl.errors import UserError
from alignctl.models.families import FAMILIES
from alignctl.models.weight_map import REPLICATED, SCORE_HEADS, VOCABULARY, Layout

_ONLY = {"output_layer.weight": VOCABULARY}
_QKV = ".self_attention.linear_qkv."
_STAGES = {"embedding.word_embeddings.weight": 0, "decoder.final_layernorm.weight": -1}
"""Pipeline stages of weights that are on one of them only."""

_MIXED = "the checkpoint was not copied completely, or two were mixed"
_EXCHANGED = "files were exchanged or renamed: copy the checkpoint again"
_NOT_AS_EXPECTED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What reading a tree raises whose parts are not what they should be."""


@dataclass(frozen=True)
class LegacyCheckpoint:
    """Contents of the ranks' files.

    Attributes:
        args: The arguments of the program that wrote them.
        names: Whose names the weights have.
        version: Of the checkpoint format; before 2.0 queries, keys and values are in other orders.
        tp: Tensor-parallel ranks.
        pp: Pipeline stages.
        iteration: Training steps taken.
        tensors: Full tensors by our Megatron names, vocabulary padding included.
        is_order_told: Whether the files themselves say which rank each of them is of.
    """

    args: Any
    names: Literal["legacy", "mcore"]
    version: float
    tp: int
    pp: int
    iteration: int
    tensors: Mapping[str, LazyTensor]
    is_order_told: bool


def read(folder: Path, expected: Model | None = None) -> LegacyCheckpoint:
    """Read the descriptions in all ranks' files; no weight is read yet.

    Args:
        folder: The checkpoint.
        expected: The architecture of a preset, believed where the files have no arguments.

    Raises:
        UserError: A rank is missing, a file is damaged or wants to run code, or the ranks do not
            fit together.
    """
    found = grid(folder)
    try:
        return _read(folder, found, expected)
    except _NOT_AS_EXPECTED as error:
        raise UserError(
            f"{folder}: not a checkpoint of Megatron's: {error!r}",
            "the files are of another program, or of a version of Megatron-LM that is not known",
        ) from error


def _read(folder: Path, found: Grid, expected: Model | None) -> LegacyCheckpoint:
    trees = {place: _tree(file) for place, file in found.files.items()}
    first = trees[0, 0]
    args = first.get("args")
    if args is None or isinstance(args, Inert):
        if expected is None:
            raise UserError(
                f"{found.files[0, 0]}: no `args` in it, which tell the architecture",
                "tell it with --preset FILE, the preset of this model",
            )
        args = expected
    _check_layout(folder, found, args)
    version = first.get("checkpoint_version") or 0
    names: Literal["legacy", "mcore"] = (
        "legacy" if any("language_model" in model for model in _models(first)) else "mcore"
    )
    shards: dict[str, dict[int, LazyTensor]] = {}
    for (tp_rank, pp_rank), tree in trees.items():
        for name, tensor in _name_tensors(
            tree, args, pp_rank, found.pp, found.files[tp_rank, pp_rank]
        ):
            if _STAGES.get(name, pp_rank) % found.pp != pp_rank:
                raise UserError(f"{tensor.where}: not a weight of pipeline stage {pp_rank}", _MIXED)
            fixed = _reorder(name, tensor, args, float(version), found.tp)
            shards.setdefault(name, {})[tp_rank] = fixed
    scores = {row.megatron for rows in SCORE_HEADS.values() for row in rows}
    _drop_copies(shards, is_scored=not scores.isdisjoint(shards), args=args)
    rows = {row.megatron: row.layout for row in FAMILIES[family_of(shards, str(folder))].weights}
    return LegacyCheckpoint(
        args=args,
        names=names,
        version=float(version),
        tp=found.tp,
        pp=found.pp,
        iteration=_iteration(first),
        tensors={
            name: _join_shards(
                folder,
                name,
                parts,
                rows.get(_any_layer(name), _ONLY.get(name, REPLICATED)),
                found.tp,
            )
            for name, parts in shards.items()
        },
        is_order_told=_check_order(found, {at: tree.get("args") for at, tree in trees.items()})
        or _check_views(found, trees),
    )


def _check_order(found: Grid, args: Mapping[tuple[int, int], Any]) -> bool:
    """Compare the rank of the process that wrote a file with the folder that it lies in.

    Megatron numbers tensor-parallel ranks first and pipeline stages last; with
    `use_tp_pp_dp_mapping` data-parallel ranks come last. Converters write all files in one process
    and say nothing of ranks.

    Returns:
        Whether the files say it.

    Raises:
        UserError: They are of other ranks.
    """
    told = {place: getattr(each, "rank", None) for place, each in args.items()}
    ranks = {place: rank for place, rank in told.items() if type(rank) is int}
    if len(set(ranks.values())) < len(args):
        return len(args) == 1
    for (tp_rank, pp_rank), rank in ranks.items():
        own = args[tp_rank, pp_rank]
        world = getattr(own, "world_size", None) or found.tp * found.pp
        if getattr(own, "use_tp_pp_dp_mapping", False):
            stage = rank // found.tp % found.pp
        else:
            stage = rank // max(1, world // found.pp)
        if (rank % found.tp, stage) != (tp_rank, pp_rank):
            raise UserError(
                f"{found.files[tp_rank, pp_rank]}: written by rank {rank} of {world}, which is "
                f"{folder_name(rank % found.tp, stage, found.pp)}",
                _EXCHANGED,
            )
    return True


def _check_views(found: Grid, trees: Mapping[tuple[int, int], Mapping[str, Any]]) -> bool:
    """Compare a rank with the place that its shards had in the whole tensors they were cut from.

    PAI's converter saves each shard together with the whole, of which it is one of so many parts.

    Returns:
        Whether all files say it; pipeline stages are told by the names in them up to two stages.

    Raises:
        UserError: They are of other ranks.
    """
    told = {place: _place_among_views(tree, found.tp) for place, tree in trees.items()}
    if None in told.values():
        return False
    for (tp_rank, pp_rank), rank in told.items():
        if rank != tp_rank:
            raise UserError(
                f"{found.files[tp_rank, pp_rank]}: its shards are part {rank} of {found.tp} of the "
                f"whole, which {folder_name(rank or 0, pp_rank, found.pp)} should hold",
                _EXCHANGED,
            )
    return found.pp <= 2


def _place_among_views(tree: Mapping[str, Any], tp: int) -> int | None:
    """Find which part of the whole tensors a file's shards are; None if they do not agree."""
    places = set()
    for model in _models(tree):
        for _, tensor in torch_file.flatten(model):
            if isinstance(tensor, torch_file.StoredTensor) and tensor.numel and tp > 1:
                described = tensor.described
                number, rest = divmod(described.offset, tensor.numel)
                if described.storage.numel == tp * tensor.numel and not rest:
                    places.add(number)
    return places.pop() if len(places) == 1 else None


def _tree(file: Path) -> dict[str, Any]:
    tree = torch_file.read(file)
    if not isinstance(tree, dict) or not any(key in tree for key in ("model", "model0")):
        raise UserError(f"{file}: not a checkpoint of Megatron's: no `model` in it")
    return tree


def _models(tree: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """List the parts of a rank's model: several with virtual pipeline stages."""
    if "model" in tree:
        parts = [tree["model"]]
    else:
        parts = [tree[f"model{number}"] for number in range(len(tree)) if f"model{number}" in tree]
    return [part for part in parts if isinstance(part, dict)]


def _iteration(tree: Mapping[str, Any]) -> int:
    value = tree.get("iteration", tree.get("total_iters", 0))
    return value if isinstance(value, int) else 0


def _check_layout(folder: Path, found: Grid, args: Any) -> None:
    for keys, size in (
        (("tensor_model_parallel_size", "model_parallel_size"), found.tp),
        (("pipeline_model_parallel_size",), found.pp),
    ):
        told = next((getattr(args, key) for key in keys if hasattr(args, key)), size)
        if told != size:
            raise UserError(
                f"{folder}: its arguments tell of {keys[0]} {told}, but there are folders for "
                f"{size}",
                _MIXED,
            )


def _name_tensors(
    tree: Mapping[str, Any], args: Any, pp_rank: int, pp: int, file: Path
) -> list[tuple[str, LazyTensor]]:
    """Give a rank's tensors our names, with layers counted over the whole model."""
    models = _models(tree)
    layers = getattr(args, "num_layers", None)
    if not isinstance(layers, int) or layers % (pp * max(1, len(models))):
        raise UserError(
            f"{file}: num_layers = {layers!r} in its arguments are not {pp} pipeline stages of "
            "equal size"
        )
    per_part = layers // (pp * len(models))
    named = []
    for number, model in enumerate(models):
        offset = number * (layers // len(models)) + pp_rank * per_part
        for stored, tensor in torch_file.flatten(model):
            name = legacy_names.ours(stored)
            if name.startswith("decoder.layers."):
                local, _, rest = name.removeprefix("decoder.layers.").partition(".")
                name = f"decoder.layers.{offset + int(local)}.{rest}"
            if name == legacy_names.FOR_HEAD and tensor.shape[:1] == (1,):
                name = "score.weight"
            if not name.endswith((".inv_freq", "._extra_state")):
                named.append((name, tensor))
    return named


def _reorder(name: str, tensor: LazyTensor, args: Any, version: float, tp: int) -> LazyTensor:
    """Bring the rows of queries, keys and values into today's order, `[heads, 3, size]`.

    Version 0 has `[3, heads, size]` and version 1 `[heads, size, 3]`, both of one rank's heads
    (Megatron-LM, `fix_query_key_value_ordering`).
    """
    if version >= 2 or _QKV not in name:
        return tensor
    heads = args.num_attention_heads // tp
    if tensor.shape[0] % (3 * heads):
        raise ValueError(f"{tensor.shape[0]} rows of queries, keys and values of {heads} heads")

    def change(rows: Bits) -> Bits:
        rest = rows.shape[1:]
        if version < 1:
            return rows.reshape(3, heads, -1, *rest).swapaxes(0, 1).reshape(rows.shape)
        return rows.reshape(heads, -1, 3, *rest).swapaxes(1, 2).reshape(rows.shape)

    return tensor.map(tensor.shape, change)


def _drop_copies(shards: dict[str, dict[int, LazyTensor]], *, is_scored: bool, args: Any) -> None:
    """Drop what is stored twice or not used: a tied embedding, the output of a scored model."""
    is_tied = getattr(args, "untie_embeddings_and_output_weights", None) is False
    copies = [legacy_names.FOR_HEAD] if legacy_names.FOR_HEAD in shards else []
    if "output_layer.weight" in shards and (is_tied or is_scored):
        copies.append("output_layer.weight")
    for copy in copies:
        dropped, embedding = shards.pop(copy), shards.get("embedding.word_embeddings.weight", {})
        if not is_scored:
            for rank in embedding.keys() & dropped.keys():
                embedding[rank] = embedding[rank].tied_to(dropped[rank])


def _any_layer(name: str) -> str:
    """Replace the layer number in a name by the placeholder that the weight maps have."""
    return re.sub(r"^decoder\.layers\.\d+\.", "decoder.layers.{layer}.", name)


def _join_shards(
    folder: Path, name: str, parts: Mapping[int, LazyTensor], layout: Layout, tp: int
) -> LazyTensor:
    """Join the shards of all tensor-parallel ranks to the full tensor."""
    if layout is REPLICATED:
        return parts[min(parts)]
    if missing := [rank for rank in range(tp) if rank not in parts]:
        raise UserError(f"{folder}: {name} is missing on tensor-parallel rank {missing[0]}")
    shards = [parts[rank] for rank in range(tp)]
    if len({(shard.shape, shard.dtype) for shard in shards}) > 1:
        raise UserError(f"{folder}: {name} has another shape or type on another rank")
    return LazyTensor(
        layout.unshard_shape(shards[0].shape, tp),
        shards[0].dtype,
        lambda: layout.unshard([shard.bits() for shard in shards]),
        f"{folder}: {name}",
    )
