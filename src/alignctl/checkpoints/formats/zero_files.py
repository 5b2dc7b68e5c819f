"""The files of a DeepSpeed checkpoint, by rank, and what each of them tells."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignctl.checkpoints.pickles import torch_file
from alignctl.checkpoints.pickles.torch_file import StoredTensor
from alignctl.checkpoints.tensors.dtypes import FLOATS
from alignctl.checkpoints.tensors.lazy import LazyTensor
from alignctl.errors import UserError

LATEST = "latest"
WHOLE = "mp_rank_00_model_states.pt"
_FILE = re.compile(r"(?:(?:bf16_)?zero_pp_rank_(\d+)_)?mp_rank_(\d+)_(model|optim)_states\.pt")
INCOMPLETE = "the checkpoint was not copied or written completely"
MIXED = "files of two checkpoints have been mixed: copy it again, or remove the older ones"
NOT_AS_EXPECTED = (ArithmeticError, AttributeError, KeyError, TypeError, ValueError)
"""What reading a tree raises whose parts are not what they should be."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class ModelStates:
    """One `model_states` file.

    Attributes:
        file: Where it is.
        stored: The model's tensors, by name; empty ones in place of weights that are partitioned.
        shapes: Of the trained weights, by parameter group and in the order of the flat tensors.
        frozen: Shapes of the weights that are not trained; told from stage 2 on.
        fragments: The rank's parts of those.
        shared: Names of tied weights, and the names under which they are stored.
        num_ranks: Data-parallel ranks.
    """

    file: Path
    stored: Mapping[str, LazyTensor]
    shapes: Sequence[Shapes]
    frozen: Shapes
    fragments: Mapping[str, LazyTensor]
    shared: Mapping[str, str]
    num_ranks: int


@dataclass(frozen=True)
class OptimStates:
    """One `optim_states` file.

    Attributes:
        file: Where it is.
        stage: Of ZeRO; 0 for an optimizer that does not partition as ZeRO does.
        num_ranks: Ranks over which the weights are spread.
        groups: The rank's part of each parameter group, flat.
        paddings: Elements left free behind each weight, by group; empty where there are none.
        slices: Of stages 1 and 2, by group, how many elements of which weights the rank has.
        ranks: What the file says of its rank; empty where it says nothing.
    """

    file: Path
    stage: int
    num_ranks: int
    groups: Sequence[LazyTensor]
    paddings: Sequence[Sequence[int]]
    slices: Sequence[Mapping[str, int]] = ()
    ranks: frozenset[int] = frozenset()

    @property
    def device(self) -> int | None:
        """Number of the GPU that the rank had, if it had one."""
        stored = [group for group in self.groups if isinstance(group, StoredTensor)]
        devices = {group.described.storage.device for group in stored}
        match = re.fullmatch(r"cuda:(\d+)", devices.pop()) if len(devices) == 1 else None
        return int(match[1]) if match else None


def has_ranks(folder: Path) -> bool:
    """Tell whether a folder holds files of a rank."""
    return any(_FILE.fullmatch(file.name) for file in folder.glob("*_states.pt"))


def rank_files(folder: Path) -> tuple[dict[int | None, Path], dict[int, Path]]:
    """Find model files and optimizer files by rank; None is the rank of a model that is whole."""
    models: dict[int | None, Path] = {}
    optimizers: dict[int, Path] = {}
    for file in sorted(folder.iterdir()):
        match = _FILE.fullmatch(file.name)
        if match is None:
            continue
        if int(match[2]) > 0:
            raise UserError(
                f"{file}: the model is split by tensor parallelism, which is not supported",
                "convert it to Hugging Face's format with the tools of the program it is from",
            )
        rank = None if match[1] is None else int(match[1])
        if match[3] == "model":
            models[rank] = file
        elif rank in optimizers:
            raise UserError(f"{file}: {optimizers[rank].name} is of the same rank", MIXED)
        elif rank is not None:
            optimizers[rank] = file
    return models, optimizers


def check_ranks(folder: Path, kind: str, files: Mapping[int, Path], num_ranks: int) -> None:
    """Refuse a checkpoint of which a rank is missing."""
    is_bf16 = any(file.name.startswith("bf16_") for file in files.values())
    for rank in range(num_ranks):
        if rank not in files:
            raise UserError(
                f"{folder}: {'bf16_' * is_bf16}zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt is "
                f"missing; there are {len(files)} of {num_ranks} ranks",
                INCOMPLETE,
            )
    if len(files) > num_ranks:
        raise UserError(f"{files[max(files)]}: the others are of {num_ranks} ranks", MIXED)


def read_model(file: Path) -> ModelStates:
    """Read what a `model_states` file tells; no weight is read yet."""
    if not file.is_file():
        raise UserError(f"{file.parent}: {file.name} is missing", INCOMPLETE)
    tree = torch_file.read(file)
    if isinstance(tree, dict) and "param_shapes" in tree and tree.get("module") is None:
        raise UserError(
            f"{file}: no model in it: DeepSpeed wrote its pipeline stages to files of their own",
            "only models that are partitioned by ZeRO alone are supported",
        )
    try:
        buffers = set(map(plain_name, tree.get("buffer_names") or ()))
        return ModelStates(
            file=file,
            stored={
                name: tensor
                for name, tensor in tensors_of(tree["module"]).items()
                if name not in buffers or tensor.dtype in FLOATS  # masks are no weights
            },
            shapes=[_shapes(group) for group in tree.get("param_shapes") or ()],
            frozen=_shapes(tree.get("frozen_param_shapes") or {}),
            fragments=tensors_of(tree.get("frozen_param_fragments") or {}),
            shared={
                plain_name(k): plain_name(v) for k, v in (tree.get("shared_params") or {}).items()
            },
            num_ranks=int(tree.get("dp_world_size") or 1),
        )
    except NOT_AS_EXPECTED as error:
        raise UserError(
            f"{file}: not the model of a DeepSpeed checkpoint: {error!r}",
            "the file is of another program, or of a version of DeepSpeed that is not known",
        ) from error


def read_optimizer(file: Path) -> OptimStates:
    """Read what an `optim_states` file tells; no weight is read yet."""
    tree = torch_file.read(file)
    try:
        state = tree["optimizer_state_dict"]
        # An enum, which is read as an inert object, or its number.
        (stage,) = getattr(state.get("zero_stage", 0), "parts", [state.get("zero_stage", 0)])
        if stage == 0:
            return OptimStates(file, 0, 0, (), ())
        groups = state["fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"]
        if stage not in (1, 2, 3) or not all(g.shape == (g.numel,) for g in groups):
            raise ValueError(f"zero_stage {stage}")
        counts = state["partition_count"]
        # Experts are spread over fewer ranks than the rest.
        (num_ranks,) = set(counts) if isinstance(counts, list) else {counts}
        paddings = [_sizes(row) for row in state.get("param_alignment_paddings") or ()]
        if len(paddings) not in (0, len(groups)):
            raise ValueError(f"paddings of {len(paddings)} groups, and {len(groups)} groups")
        slices = [_slices(row) for row in state.get("param_slice_mappings") or ()]
        ranks = {row["partition_rank"] for row in state.get("ds_zero_partition_groups") or ()}
        return OptimStates(file, stage, int(num_ranks), groups, paddings, slices, frozenset(ranks))
    except NOT_AS_EXPECTED as error:
        raise UserError(
            f"{file}: not the optimizer of a ZeRO checkpoint: {error!r}",
            "models with experts, and the oldest versions of DeepSpeed, are not supported",
        ) from error


def _slices(row: Mapping[str, Any]) -> Mapping[str, int]:
    """Read how many elements of each weight a rank says it has, from DeepSpeed's addresses."""
    states = {plain_name(name): getattr(each, "state", None) for name, each in row.items()}
    return {
        name: int(state["numel"])
        for name, state in states.items()
        if isinstance(state, Mapping) and state.get("numel")
    }


def plain_name(name: str) -> str:
    """Remove from a name what DeepSpeed puts before the model's own."""
    return name.removeprefix("module.")


def tensors_of(tree: Mapping[str, Any]) -> dict[str, LazyTensor]:
    """Find the tensors among what a tree names."""
    return {plain_name(name): each for name, each in tree.items() if isinstance(each, LazyTensor)}


def _shapes(tree: Mapping[str, Any]) -> Shapes:
    return {plain_name(name): _sizes(shape) for name, shape in tree.items()}


def _sizes(numbers: Sequence[Any]) -> tuple[int, ...]:
    sizes = tuple(map(int, numbers))
    if min(sizes, default=0) < 0:
        raise ValueError(sizes)
    return sizes
