"""DeepSpeed's checkpoints of Hugging Face models, as the float32 weights that ZeRO trains.

latest                                                 the name of a folder, the tag
TAG/mp_rank_00_model_states.pt                         the model, at stages 1 and 2
TAG/zero_pp_rank_R_mp_rank_00_model_states.pt          what a rank keeps of it, at stage 3
TAG/[bf16_]zero_pp_rank_R_mp_rank_00_optim_states.pt   a rank's share of the float32 weights

Source: utils/zero_to_fp32.py of DeepSpeed 0.19.8, which does the same with all in memory.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alignctl.checkpoints.formats import zero_order
from alignctl.checkpoints.formats.zero_files import (
    LATEST,
    MIXED,
    WHOLE,
    ModelStates,
    OptimStates,
    check_ranks,
    has_ranks,
    rank_files,
    read_model,
    read_optimizer,
)
from alignctl.checkpoints.pickles import torch_file
from alignctl.checkpoints.tensors.dtypes import FLOAT32, Bits
from alignctl.checkpoints.tensors.lazy import LazyTensor
from alignctl.errors import UserError
from alignctl.user_files import read_text


@dataclass(frozen=True)
class ZeroCheckpoint:
    """Contents of the ranks' files.

    Attributes:
        tensors: Full tensors by the names that the model gives them: float32, but at stage 0 of
            the types in which they are stored.
        stage: Of ZeRO; 0 where the model's own weights are all there is.
        num_ranks: Ranks over which the weights are spread.
        is_order_told: Whether the files themselves say which rank each of them is of.
    """

    tensors: dict[str, LazyTensor]
    stage: int
    num_ranks: int
    is_order_told: bool


def find(path: Path) -> Path | None:
    """Find the folder with the ranks' files, if a path is a checkpoint of DeepSpeed's; else None.

    Raises:
        UserError: Its `latest` names no folder beside it.
    """
    pointer = path / LATEST
    if not pointer.is_file():
        return path if has_ranks(path) else None
    tag = read_text(pointer, 1000).strip()
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
    return path / tag if has_ranks(path / tag) else None


def read(folder: Path) -> ZeroCheckpoint:
    """Read the descriptions in all ranks' files; no weight is read yet.

    Args:
        folder: As `find` gives it.

    Raises:
        UserError: A rank is missing, a file is damaged or wants to run code, the files do not fit
            together, or the model was split in other ways than by ZeRO.
    """
    models, optimizers = rank_files(folder)
    shares = [read_optimizer(file) for _, file in sorted(optimizers.items())]
    stage, num_ranks = (shares[0].stage, shares[0].num_ranks) if shares else (0, 0)
    for share in shares:
        if (share.stage, share.num_ranks) != (stage, num_ranks):
            raise UserError(
                f"{share.file}: of ZeRO-{share.stage} on {share.num_ranks} ranks, but "
                f"{shares[0].file.name} of ZeRO-{stage} on {num_ranks}",
                MIXED,
            )
    if stage == 0:
        return _read_unpartitioned(read_model(models.get(None) or models.get(0) or folder / WHOLE))
    check_ranks(folder, "optim", optimizers, num_ranks)
    if stage < 3:
        model = read_model(folder / WHOLE)
        found = dict(_join_groups(model, shares))
        is_told = zero_order.check_slices(model, shares)
    else:
        ranks = {rank: file for rank, file in models.items() if rank is not None}
        check_ranks(folder, "model", ranks, num_ranks)
        parts = [read_model(ranks[rank]) for rank in range(num_ranks)]
        model = parts[0]
        found = dict(_join_ranks(model, shares)) | dict(_frozen(parts))
        is_told = False
    is_told |= zero_order.check(shares)
    return ZeroCheckpoint(_complete(model, found), stage, num_ranks, is_told or num_ranks == 1)


def _join_groups(
    model: ModelStates, shares: Sequence[OptimStates]
) -> Iterator[tuple[str, LazyTensor]]:
    """Join weights of stages 1 and 2: a group's end to end, cut into the ranks' parts."""
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
            yield name, _join_parts(first.file, name, shape, _cut(parts, place, end))
            place = end + padding
        # The files leave out padding at the end of a group, but not all of it.
        present, unit = sum(part.numel for part in parts), 2 * len(shares)
        if end > present or -(-place // unit) != -(-present // unit):
            raise _misfit(first, f"{present} elements in group {number} of all ranks", place)


def _join_ranks(
    model: ModelStates, shares: Sequence[OptimStates]
) -> Iterator[tuple[str, LazyTensor]]:
    """Join weights of stage 3: of each an equal part on every rank, all at the same place."""
    place = 0
    for name, shape in ((name, shape) for group in model.shapes for name, shape in group.items()):
        numel = math.prod(shape)
        size = -(-numel // len(shares))
        parts: list[LazyTensor] = []
        for rank, share in enumerate(shares):
            used = min(size, numel - rank * size)  # the last ranks' parts are filled up
            parts += _cut(share.groups, place, place + used)
        yield name, _join_parts(shares[0].file, name, shape, parts)
        place += size
    for share in shares:
        if (present := sum(group.numel for group in share.groups)) != place:
            raise _misfit(share, f"{present} elements", place)


def _misfit(share: OptimStates, found: str, expected: int) -> UserError:
    return UserError(
        f"{share.file}: {found}, but the shapes of the model's weights ask for {expected}", MIXED
    )


def _frozen(parts: Sequence[ModelStates]) -> Iterator[tuple[str, LazyTensor]]:
    """Join weights of stage 3 that are not trained: each rank's model file holds a part."""
    for name, shape in parts[0].frozen.items():
        for part in parts:
            if name not in part.fragments:
                raise UserError(f"{part.file}: no part of the weight {name!r} in it", MIXED)
        flat = [_flat(part.fragments[name]) for part in parts]
        if (present := sum(part.numel for part in flat)) < math.prod(shape):
            raise UserError(
                f"{parts[0].file}: {name!r} has {math.prod(shape)} elements, but the ranks hold "
                f"{present}",
                MIXED,
            )
        yield name, _join_parts(parts[0].file, name, shape, _cut(flat, 0, math.prod(shape)))


def _flat(tensor: LazyTensor) -> LazyTensor:
    if tensor.shape == (tensor.numel,):
        return tensor
    return tensor.map((tensor.numel,), lambda whole: whole.reshape(-1))


def _cut(parts: Sequence[LazyTensor], begin: int, end: int) -> list[LazyTensor]:
    """Cut what lies between two places out of flat tensors that follow one another."""
    found, place = [], 0
    for part in parts:
        first, last = max(begin - place, 0), min(end - place, part.numel)
        if first < last:
            is_whole = last - first == part.numel  # then its checksum is compared too
            found.append(part if is_whole else torch_file.narrow(part, first, last))
        place += part.numel
    return found


def _join_parts(
    file: Path, name: str, shape: tuple[int, ...], parts: Sequence[LazyTensor]
) -> LazyTensor:
    same = [part.to(FLOAT32) for part in parts]

    def bits() -> Bits:
        if len(parts) == 1:
            return same[0].bits().reshape(shape)
        flat, place = np.empty(math.prod(shape), FLOAT32.bits), 0
        for part in same:  # one at a time: beside the weight, only one part is in memory
            flat[place : place + part.numel] = part.bits()
            place += part.numel
        return flat.reshape(shape)

    return LazyTensor(shape, FLOAT32, bits, f"{file}: {name}")


def _complete(model: ModelStates, found: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Add what the model's own file holds whole, and the second names of tied weights."""
    tensors = dict(found)
    for name, stored in model.stored.items():
        if name in found or name in model.shared:
            continue
        if not stored.numel:
            raise UserError(
                f"{stored.where}: empty, and no part of it is in the files of the ranks",
                "models with experts, and the oldest versions of DeepSpeed, are not supported",
            )
        tensors[name] = stored.to(FLOAT32)
    for alias, name in model.shared.items():
        if name not in tensors:
            raise UserError(
                f"{model.file}: {alias!r} is tied to {name!r}, which is not in the checkpoint",
                "weights that are not trained were left out when it was written; without them "
                "there is no model",
            )
        tensors[alias] = tensors[name]
    return tensors


def _read_unpartitioned(model: ModelStates) -> ZeroCheckpoint:
    """Read the model's own weights, where no optimizer keeps better ones in a known order."""
    shapes = {name: shape for group in model.shapes for name, shape in group.items()}
    for name, stored in model.stored.items():
        if not stored.numel or stored.shape != shapes.get(name, stored.shape):
            raise UserError(
                f"{stored.where}: only a placeholder: the weights are in the optimizer's files, "
                f"of which there are none in {model.file.parent}",
                "copy the files *_optim_states.pt of all ranks into the folder too",
            )
    return ZeroCheckpoint(dict(model.stored), 0, model.num_ranks, is_order_told=True)
