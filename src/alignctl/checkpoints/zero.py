"""DeepSpeed's checkpoints of Hugging Face models, as the float32 weights that ZeRO trains.

latest                                                 the name of a folder, the tag
TAG/mp_rank_00_model_states.pt                         the model, at stages 1 and 2
TAG/zero_pp_rank_R_mp_rank_00_model_states.pt          what a rank keeps of it, at stage 3
TAG/[bf16_]zero_pp_rank_R_mp_rank_00_optim_states.pt   a rank's share of the float32 weights

Source: utils/zero_to_fp32.py of DeepSpeed 0.19.8, which does the same with all in memory.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignctl.checkpoints import torch_file
from alignctl.checkpoints.lazy import LazyTensor
from alignctl.errors import UserError

LATEST = "latest"
_WHOLE = "mp_rank_00_model_states.pt"
_FILE = re.compile(r"(?:(?:bf16_)?zero_pp_rank_(\d+)_)?mp_rank_(\d+)_(model|optim)_states\.pt")
_INCOMPLETE = "the checkpoint was not copied or written completely"
_MIXED = "files of two checkpoints have been mixed: copy it again, or remove the older ones"
_NOT_AS_EXPECTED = (ArithmeticError, AttributeError, KeyError, TypeError, ValueError)
"""What reading a tree raises whose parts are not what they should be."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class ZeroCheckpoint:
    """What is in the ranks' files.

    Attributes:
        tensors: Full tensors by the names that the model gives them: float32, but at stage 0 of
            the types in which they are stored.
        stage: Of ZeRO; 0 where the model's own weights are all there is.
        num_ranks: Ranks over which the weights are spread.
    """

    tensors: dict[str, LazyTensor]
    stage: int
    num_ranks: int


@dataclass(frozen=True)
class _Model:
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
class _Share:
    """One `optim_states` file.

    Attributes:
        file: Where it is.
        stage: Of ZeRO; 0 for an optimizer that does not partition as ZeRO does.
        num_ranks: Ranks over which the weights are spread.
        groups: The rank's part of each parameter group, flat.
        paddings: Elements left free behind each weight, by group; empty where there are none.
    """

    file: Path
    stage: int
    num_ranks: int
    groups: Sequence[LazyTensor]
    paddings: Sequence[Sequence[int]]


def find(path: Path) -> Path | None:
    """The folder with the ranks' files, when a path is a checkpoint of DeepSpeed's, or None.

    Raises:
        UserError: Its `latest` names no folder beside it.
    """
    pointer = path / LATEST
    if not pointer.is_file():
        return path if _has_ranks(path) else None
    try:
        tag = pointer.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        raise UserError(f"{pointer}: cannot be read: {error.strerror}") from error
    is_name = Path(tag).name == tag != ".." and tag.isprintable()
    if not is_name or not 0 < len(tag.encode()) < 256:
        raise UserError(
            f"{pointer}: {tag[:40]!r} is not the name of a folder",
            "write the name of a folder beside it into the file, such as global_step100",
        )
    if not (path / tag).is_dir():
        raise UserError(
            f"{pointer} names {tag}, which is not there",
            "put the folder back, or write the name of another one into the file",
        )
    return path / tag if _has_ranks(path / tag) else None


def _has_ranks(folder: Path) -> bool:
    return any(_FILE.fullmatch(file.name) for file in folder.glob("*_states.pt"))


def read(folder: Path) -> ZeroCheckpoint:
    """Reads the descriptions in all ranks' files; no weight is read yet.

    Args:
        folder: As `find` gives it.

    Raises:
        UserError: A rank is missing, a file is damaged or wants to run code, the files do not fit
            together, or the model was split in other ways than by ZeRO.
    """
    models, optimizers = _files(folder)
    shares = [_share(file) for _, file in sorted(optimizers.items())]
    stage, num_ranks = (shares[0].stage, shares[0].num_ranks) if shares else (0, 0)
    for share in shares:
        if (share.stage, share.num_ranks) != (stage, num_ranks):
            raise UserError(
                f"{share.file}: of ZeRO-{share.stage} on {share.num_ranks} ranks, but "
                f"{shares[0].file.name} of ZeRO-{stage} on {num_ranks}",
                _MIXED,
            )
    if stage == 0:
        return _unpartitioned(_model(models.get(None) or models.get(0) or folder / _WHOLE))
    _check_ranks(folder, "optim", optimizers, num_ranks)
    if stage < 3:
        model = _model(folder / _WHOLE)
        found = dict(_from_groups(model, shares))
    else:
        ranks = {rank: file for rank, file in models.items() if rank is not None}
        _check_ranks(folder, "model", ranks, num_ranks)
        parts = [_model(ranks[rank]) for rank in range(num_ranks)]
        model = parts[0]
        found = dict(_from_ranks(model, shares)) | dict(_frozen(parts))
    return ZeroCheckpoint(_completed(model, found), stage, num_ranks)


# ---- the files ----


def _files(folder: Path) -> tuple[dict[int | None, Path], dict[int, Path]]:
    """Model files and optimizer files by rank; None is the rank of a model that is whole."""
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
            raise UserError(f"{file}: {optimizers[rank].name} is of the same rank", _MIXED)
        elif rank is not None:
            optimizers[rank] = file
    return models, optimizers


def _check_ranks(folder: Path, kind: str, files: Mapping[int, Path], num_ranks: int) -> None:
    is_bf16 = any(file.name.startswith("bf16_") for file in files.values())
    for rank in range(num_ranks):
        if rank not in files:
            raise UserError(
                f"{folder}: {'bf16_' * is_bf16}zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt is "
                f"missing; there are {len(files)} of {num_ranks} ranks",
                _INCOMPLETE,
            )
    if len(files) > num_ranks:
        raise UserError(f"{files[max(files)]}: the others are of {num_ranks} ranks", _MIXED)


def _model(file: Path) -> _Model:
    if not file.is_file():
        raise UserError(f"{file.parent}: {file.name} is missing", _INCOMPLETE)
    tree = torch_file.read(file)
    if isinstance(tree, dict) and "param_shapes" in tree and tree.get("module") is None:
        raise UserError(
            f"{file}: no model in it: DeepSpeed wrote its pipeline stages to files of their own",
            "only models that are partitioned by ZeRO alone are supported",
        )
    try:
        buffers = set(map(_plain, tree.get("buffer_names") or ()))
        return _Model(
            file=file,
            stored={
                name: tensor
                for name, tensor in _tensors(tree["module"]).items()
                if name not in buffers or tensor.dtype.is_floating_point  # masks are no weights
            },
            shapes=[_shapes(group) for group in tree.get("param_shapes") or ()],
            frozen=_shapes(tree.get("frozen_param_shapes") or {}),
            fragments=_tensors(tree.get("frozen_param_fragments") or {}),
            shared={_plain(k): _plain(v) for k, v in (tree.get("shared_params") or {}).items()},
            num_ranks=int(tree.get("dp_world_size") or 1),
        )
    except _NOT_AS_EXPECTED as error:
        raise UserError(
            f"{file}: not the model of a DeepSpeed checkpoint: {error!r}",
            "the file is of another program, or of a version of DeepSpeed that is not known",
        ) from error


def _share(file: Path) -> _Share:
    tree = torch_file.read(file)
    try:
        state = tree["optimizer_state_dict"]
        # An enum, which is read as an inert object, or its number.
        (stage,) = getattr(state.get("zero_stage", 0), "parts", [state.get("zero_stage", 0)])
        if stage == 0:
            return _Share(file, 0, 0, (), ())
        groups = state["fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"]
        if stage not in (1, 2, 3) or not all(g.shape == (g.numel,) for g in groups):
            raise ValueError(f"zero_stage {stage}")
        counts = state["partition_count"]
        # Experts are spread over fewer ranks than the rest.
        (num_ranks,) = set(counts) if isinstance(counts, list) else {counts}
        paddings = [_sizes(row) for row in state.get("param_alignment_paddings") or ()]
        if len(paddings) not in (0, len(groups)):
            raise ValueError(f"paddings of {len(paddings)} groups, and {len(groups)} groups")
        return _Share(file, stage, int(num_ranks), groups, paddings)
    except _NOT_AS_EXPECTED as error:
        raise UserError(
            f"{file}: not the optimizer of a ZeRO checkpoint: {error!r}",
            "models with experts, and the oldest versions of DeepSpeed, are not supported",
        ) from error


def _plain(name: str) -> str:
    return name.removeprefix("module.")


def _tensors(tree: Mapping[str, Any]) -> dict[str, LazyTensor]:
    return {_plain(name): each for name, each in tree.items() if isinstance(each, LazyTensor)}


def _shapes(tree: Mapping[str, Any]) -> Shapes:
    return {_plain(name): _sizes(shape) for name, shape in tree.items()}


def _sizes(numbers: Sequence[Any]) -> tuple[int, ...]:
    sizes = tuple(map(int, numbers))
    if min(sizes, default=0) < 0:
        raise ValueError(sizes)
    return sizes


# ---- the weights ----


def _from_groups(model: _Model, shares: Sequence[_Share]) -> Iterator[tuple[str, LazyTensor]]:
    """Stages 1 and 2: a group's weights one after another, the whole cut into the ranks' parts."""
    first = shares[0]
    for share in shares:
        if len(share.groups) != len(model.shapes):
            raise _misfit(share, f"{len(share.groups)} parameter groups", len(model.shapes))
    for number, shapes in enumerate(model.shapes):
        parts = [share.groups[number] for share in shares]
        paddings = first.paddings[number] if first.paddings else (0,) * len(shapes)
        if len(paddings) != len(shapes):
            raise _misfit(first, f"{len(paddings)} weights in group {number}", len(shapes))
        place = end = 0
        for (name, shape), padding in zip(shapes.items(), paddings, strict=True):
            end = place + math.prod(shape)
            yield name, _joined(first.file, name, shape, _cut(parts, place, end))
            place = end + padding
        # The files leave out padding at the end of a group, but not all of it.
        present, unit = sum(part.numel for part in parts), 2 * len(shares)
        if end > present or -(-place // unit) != -(-present // unit):
            raise _misfit(first, f"{present} elements in group {number} of all ranks", place)


def _from_ranks(model: _Model, shares: Sequence[_Share]) -> Iterator[tuple[str, LazyTensor]]:
    """Stage 3: of each weight an equal part on every rank, at the same place on all of them."""
    place = 0
    for name, shape in ((name, shape) for group in model.shapes for name, shape in group.items()):
        numel = math.prod(shape)
        size = -(-numel // len(shares))
        parts: list[LazyTensor] = []
        for rank, share in enumerate(shares):
            used = min(size, numel - rank * size)  # the last ranks' parts are filled up
            parts += _cut(share.groups, place, place + used)
        yield name, _joined(shares[0].file, name, shape, parts)
        place += size
    for share in shares:
        if (present := sum(group.numel for group in share.groups)) != place:
            raise _misfit(share, f"{present} elements", place)


def _misfit(share: _Share, found: str, expected: int) -> UserError:
    return UserError(
        f"{share.file}: {found}, but the shapes of the model's weights ask for {expected}", _MIXED
    )


def _frozen(parts: Sequence[_Model]) -> Iterator[tuple[str, LazyTensor]]:
    """Stage 3: a weight that is not trained, of which each rank's model file holds a part."""
    for name, shape in parts[0].frozen.items():
        for part in parts:
            if name not in part.fragments:
                raise UserError(f"{part.file}: no part of the weight {name!r} in it", _MIXED)
        flat = [_flat(part.fragments[name]) for part in parts]
        if (present := sum(part.numel for part in flat)) < math.prod(shape):
            raise UserError(
                f"{parts[0].file}: {name!r} has {math.prod(shape)} elements, but the ranks hold "
                f"{present}",
                _MIXED,
            )
        yield name, _joined(parts[0].file, name, shape, _cut(flat, 0, math.prod(shape)))


def _flat(tensor: LazyTensor) -> LazyTensor:
    if tensor.shape == (tensor.numel,):
        return tensor
    return tensor.map((tensor.numel,), lambda whole: whole.reshape(-1))


def _cut(parts: Sequence[LazyTensor], begin: int, end: int) -> list[LazyTensor]:
    """What lies between two places of flat tensors that follow one another."""
    found, place = [], 0
    for part in parts:
        first, last = max(begin - place, 0), min(end - place, part.numel)
        if first < last:
            is_whole = last - first == part.numel  # then its checksum is compared too
            found.append(part if is_whole else torch_file.narrow(part, first, last))
        place += part.numel
    return found


def _joined(
    file: Path, name: str, shape: tuple[int, ...], parts: Sequence[LazyTensor]
) -> LazyTensor:
    def make() -> Tensor:
        if len(parts) == 1:
            return parts[0].make().to(torch.float32).reshape(shape)
        flat, place = torch.empty(math.prod(shape), dtype=torch.float32), 0
        for part in parts:  # one at a time: beside the weight, only one part is in memory
            flat[place : place + part.numel] = part.make()
            place += part.numel
        return flat.reshape(shape)

    return LazyTensor(shape, torch.float32, make, f"{file}: {name}")


def _completed(model: _Model, found: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Adds what the model's own file holds whole, and the second names of tied weights."""
    tensors = dict(found)
    for name, stored in model.stored.items():
        if name in found or name in model.shared:
            continue
        if not stored.numel:
            raise UserError(
                f"{stored.where}: empty, and no part of it is in the files of the ranks",
                "models with experts, and the oldest versions of DeepSpeed, are not supported",
            )
        tensors[name] = stored.to(torch.float32)
    for alias, name in model.shared.items():
        if name not in tensors:
            raise UserError(
                f"{model.file}: {alias!r} is tied to {name!r}, which is not in the checkpoint",
                "weights that are not trained were left out when it was written; without them "
                "there is no model",
            )
        tensors[alias] = tensors[name]
    return tensors


def _unpartitioned(model: _Model) -> ZeroCheckpoint:
    """The model's own weights, where no optimizer keeps better ones in an order that is known."""
    shapes = {name: shape for group in model.shapes for name, shape in group.items()}
    for name, stored in model.stored.items():
        if not stored.numel or stored.shape != shapes.get(name, stored.shape):
            raise UserError(
                f"{stored.where}: only a placeholder: the weights are in the optimizer's files, "
                f"of which there are none in {model.file.parent}",
                "copy the files *_optim_states.pt of all ranks into the folder too",
            )
    return ZeroCheckpoint(dict(model.stored), 0, model.num_ranks)
