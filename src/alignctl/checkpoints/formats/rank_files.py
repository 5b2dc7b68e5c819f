"""The folders of Megatron-LM's older checkpoints: one file for each tensor and pipeline rank.

mp_rank_TT/            one pipeline stage      model_optim_rng.pt, or PAI's model_rng.pt
mp_rank_TT_PPP/        several
"""

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from alignctl.checkpoints.auxiliary_files import explain_dangling
from alignctl.errors import UserError

FILE_NAMES = ("model_optim_rng.pt", "model_rng.pt")
"""Megatron-LM's, and PAI-Megatron-Patch's for weights without an optimizer."""

_FOLDER = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3,}))?")


@dataclass(frozen=True)
class Grid:
    """The files of a checkpoint by tensor and pipeline rank.

    Attributes:
        tp: Tensor-parallel ranks.
        pp: Pipeline stages.
        files: Each rank's file.
    """

    tp: int
    pp: int
    files: Mapping[tuple[int, int], Path]


def folder_name(tp_rank: int, pp_rank: int, pp: int) -> str:
    """Return the name of a rank's folder."""
    return f"mp_rank_{tp_rank:02d}" + (f"_{pp_rank:03d}" if pp > 1 else "")


def has_ranks(folder: Path) -> bool:
    """Tell whether a folder is such a checkpoint, complete or not."""
    return any(
        _FOLDER.fullmatch(child.name)
        for child in folder.iterdir()
        if child.is_dir() or child.is_symlink()
    )


def grid(folder: Path) -> Grid:
    """Find every rank's file.

    PAI's folders for PPO training hold each rank twice, with and without a pipeline rank; both
    are the same.

    Raises:
        UserError: A rank's folder or file is missing. A writer that is stopped can leave the
            first ranks behind, with a tracker file that looks finished.
    """
    files: dict[tuple[int, int], Path] = {}
    for child in sorted(folder.iterdir()):
        match = _FOLDER.fullmatch(child.name)
        if match and child.is_symlink() and not child.exists():
            raise explain_dangling(child)
        if match and child.is_dir():
            place, file = (int(match[1]), int(match[2] or 0)), _weights(child)
            other = files.setdefault(place, file)
            if other != file and _contents(other) != _contents(file):
                raise UserError(
                    f"{other} and {file}: both are of one rank, and differ",
                    "two checkpoints have been mixed: move the folders of one of them elsewhere",
                )
    tp, pp = (1 + max(ranks) for ranks in zip(*files, strict=True))
    for tp_rank in range(tp):
        for pp_rank in range(pp):
            if (tp_rank, pp_rank) not in files:
                raise UserError(
                    f"{folder}: {folder_name(tp_rank, pp_rank, pp)} is missing; there are "
                    f"{len(files)} of {tp} x {pp} ranks",
                    "the checkpoint was not copied or written completely",
                )
    return Grid(tp, pp, files)


def _contents(file: Path) -> object:
    """Return values that differ for other files of `torch.save`: checksums of what is in them."""
    if not zipfile.is_zipfile(file):
        return file.stat().st_size
    with zipfile.ZipFile(file) as archive:
        return [(e.filename.partition("/")[2], e.file_size, e.CRC) for e in archive.infolist()]


def _weights(folder: Path) -> Path:
    for name in FILE_NAMES:
        if (folder / name).is_file():
            return folder / name
        if (folder / name).is_symlink():
            raise explain_dangling(folder / name)
    raise UserError(
        f"{folder}: neither {' nor '.join(FILE_NAMES)} is in it",
        "the checkpoint was not copied or written completely",
    )
