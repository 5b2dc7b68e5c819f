"""Checkpoints of Megatron-LM's files by rank, ours and what others would have written."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from alignctl.checkpoints.conversion import Target, convert
from alignctl.checkpoints.find import find
from alignctl.checkpoints.source import Source
from alignctl.config.sections import Head
from alignctl.run_folder import LATEST
from tests.checkpoints.folders import (
    Family,
    architecture,
    random_weights,
    write_config,
    write_hf,
)

FILE = "model_optim_rng.pt"


def source_of(
    folder: Path, family: Family, *, head: Head = "lm", tie: bool | None = None
) -> Source:
    model = architecture(family, tie=tie)
    write_hf(folder, model, random_weights(model, head=head))
    write_config(folder, model, head=head)
    return find(folder)


def write_legacy(source: Source, folder: Path, *, tp: int, pp: int) -> Path:
    (folder / "release").mkdir(parents=True)
    convert(source, folder / "release", Target("legacy", tp=tp, pp=pp))
    (folder / LATEST).write_text("release")
    return folder / "release"


def contents(folder: Path) -> dict[str, dict[str, Any]]:
    """Every rank's file as Megatron-LM reads it."""
    return {
        file.parent.name: torch.load(file, weights_only=False)
        for file in sorted(folder.glob(f"mp_rank_*/{FILE}"))
    }


def save(folder: Path, ranks: Mapping[str, Any], *, file: str = FILE) -> Path:
    for name, tree in ranks.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        torch.save(tree, folder / name / file)
    return folder


def foreign(
    tmp_path: Path, family: Family, *, tp: int = 1, pp: int = 1, head: Head = "lm"
) -> tuple[Source, dict[str, Any]]:
    """A model, and the ranks' files of a checkpoint of it without our manifest."""
    source = source_of(tmp_path / "hf", family, head=head)
    ranks = contents(write_legacy(source, tmp_path / "ours", tp=tp, pp=pp))
    return source, ranks
