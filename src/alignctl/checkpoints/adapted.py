"""Checkpoints with adapters instead of weights: the base model they belong to, and the two as one.

Such a checkpoint refers to its base by path and by the checksums of its weight files. Whoever opens
it finds the whole model, merged tensor by tensor when a tensor is asked for: a weight plus
(alpha / rank) B A, computed in float32 and rounded once, to the type that was trained in.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from alignctl.checkpoints import manifest
from alignctl.checkpoints.identity import find_recorded_files, weight_files
from alignctl.checkpoints.manifest import Base, Manifest
from alignctl.checkpoints.source import Source
from alignctl.checkpoints.tensors.dtypes import DTYPES
from alignctl.checkpoints.tensors.lazy import LazyTensor
from alignctl.errors import UserError
from alignctl.models.adapters import add_adapters, group_by_weight
from alignctl.models.families import weight_map

if TYPE_CHECKING:
    from torch import Tensor


def base_folder(path: Path, found: Base) -> Path:
    """Find the folder of the base that adapters belong to.

    Args:
        path: The checkpoint with the adapters.
        found: What it says.

    Raises:
        UserError: There is no such folder.
    """
    if not (folder := Path(found.path)).is_dir():
        raise UserError(
            f"{path}: its adapters were trained on the model in {folder}, which is not there",
            "put that folder back, or a link to where it is now",
        )
    return folder


def check_base(path: Path, found: Base, base: Source) -> None:
    """Compare a base with what its adapters were made for, without reading a weight.

    Args:
        path: The checkpoint with the adapters.
        found: What it says.
        base: What is at that place now.

    Raises:
        UserError: It is another model.
    """
    if base.manifest is not None:
        mine = find_recorded_files(base)
        is_same = mine.keys() == found.files.keys() and all(
            mine[name].agrees_with(each) for name, each in found.files.items()
        )
    else:
        sizes = {name: (base.path / name).stat().st_size for name in weight_files(base)}
        is_same = sizes == {name: each.num_bytes for name, each in found.files.items()}
    if not is_same:
        raise _explain_change(path, base.path)


def verify(source: Source, *, share: int = 0, num_shares: int = 1) -> None:
    """Compare the checksums of all files that a model is made of, where they are known.

    Args:
        source: The model.
        share: Which share of the files is read, when several ranks divide them.
        num_shares: How many shares there are.

    Raises:
        UserError: A file's content is not what was written, or what adapters were made for.
    """
    if source.manifest is None:
        return
    manifest.verify_checksums(source.path, source.manifest, share=share, num_shares=num_shares)
    if source.adapted is None or source.manifest.adapted is None:
        return
    base, files = source.adapted.base, source.manifest.adapted.base.files
    verify(base, share=share, num_shares=num_shares)
    if find_recorded_files(base) != files:
        for name in sorted(files)[share::num_shares]:
            if not manifest.is_unchanged(base.path / name, files[name]):
                raise _explain_change(source.path, base.path)


def _explain_change(path: Path, base: Path) -> UserError:
    return UserError(
        f"{path}: its adapters were trained on the model that was in {base}, and the weights there "
        "are other ones now",
        "put that model back: adapters mean nothing to other weights",
    )


def merge_adapters(
    found: Manifest, base: Source, stored: Mapping[str, LazyTensor]
) -> dict[str, LazyTensor]:
    """Add adapters to their base, and return the whole model by our Megatron names.

    Args:
        found: The manifest of the checkpoint with the adapters.
        base: Their base.
        stored: What the checkpoint holds.
    """
    assert found.adapted is not None
    model, lora, dtype = found.model, found.adapted.lora, DTYPES[found.dtype]
    rows, own = weight_map(model, found.head), group_by_weight(model, lora)

    def merge(name: str) -> LazyTensor:
        full = base.tensors[name]

        def add(weight: "Tensor") -> "Tensor":
            tensors = {key: stored[key].make() for each in own[name] for key in each.names}
            return add_adapters(weight, rows[name], model, lora, own[name], tensors)

        return replace(full.compute(add, dtype), where=f"{full.where} with its adapters")

    return {
        name: stored[name]
        if name in stored
        else merge(name)
        if name in own
        else base.tensors[name].to(dtype)
        for name in rows
    }
