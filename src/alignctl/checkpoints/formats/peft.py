"""Adapters as a folder of PEFT's: adapter_config.json and adapter_model.safetensors.

An adapter of ours is that of one Hugging Face linear layer already, so tensors are renamed and
written as they are. DeepSpeed's checkpoints with adapters are such folders too.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alignctl import user_files
from alignctl.checkpoints.adapted import verify
from alignctl.checkpoints.formats import hf_files, safetensors_file
from alignctl.checkpoints.source import Adapters, Source
from alignctl.checkpoints.tensors.lazy import LazyTensor
from alignctl.config.sections import Head, Lora, Model
from alignctl.errors import RunError, UserError
from alignctl.models.adapters import PEFT_PREFIX, adapter_map
from alignctl.models.weight_map import HEAD_MODULES, SCORE_HEADS

CONFIG, WEIGHTS = hf_files.ADAPTERS, "adapter_model.safetensors"


def names(model: Model, lora: Lora, head: Head) -> dict[str, str]:
    """Map our Megatron name of each trained tensor to PEFT's: adapters and score head.

    PEFT knows the first kind of score head only; the tensors of the other one are named likewise.
    """
    found = {name: row.hf[0] for name, row in adapter_map(model, lora).items()}
    rows = () if head == "lm" else SCORE_HEADS[head]
    return found | {row.megatron: PEFT_PREFIX + row.hf[0] for row in rows}


def read(folder: Path, model: Model, lora: Lora, head: Head) -> dict[str, LazyTensor]:
    """Read the trained tensors of a folder by our Megatron names; those it lacks are left out.

    Raises:
        UserError: The file is missing or damaged.
    """
    stored = safetensors_file.read(folder / WEIGHTS)
    return {
        ours: stored[theirs]
        for ours, theirs in names(model, lora, head).items()
        if theirs in stored
    }


def write(source: Source, folder: Path, base: str | None = None) -> None:
    """Write the adapters of a model, with its score head if it has one.

    Args:
        source: A checkpoint with adapters.
        folder: An empty folder.
        base: What PEFT is told of the model they belong to; None: its path.

    Raises:
        UserError: The source has no adapters, is damaged, or has a head that transformers lacks.
        RunError: What was written is not what was read.
    """
    tensors, adapted = _adapters(source)
    with (folder / WEIGHTS).open("wb") as stream:
        writer = safetensors_file.Writer(stream, tensors)
        for tensor in tensors.values():
            writer.write(tensor.guard().bits())
    text = _config(source.model, adapted.lora, source.head, adapted.base.path, base)
    (folder / CONFIG).write_text(text, encoding="utf-8")
    written = safetensors_file.read(folder / WEIGHTS)
    for name, tensor in tensors.items():
        if not np.array_equal(written[name].bits(), tensor.bits()):
            raise RunError(f"{folder / WEIGHTS}: {name} differs from {tensor.where}")


def is_written(source: Source, folder: Path, base: str | None = None) -> bool:
    """Tell whether a folder holds what `write` makes of a model, bit by bit, and a card at most.

    Raises:
        UserError: As `write`; or a file of the folder is damaged.
    """
    tensors, adapted = _adapters(source)
    if {file.name for file in folder.iterdir()} - {"README.md"} != {CONFIG, WEIGHTS}:
        return False
    wanted = _config(source.model, adapted.lora, source.head, adapted.base.path, base)
    if user_files.read_text(folder / CONFIG) != wanted:
        return False
    written = safetensors_file.read(folder / WEIGHTS)
    return written.keys() == tensors.keys() and all(
        written[name].dtype == tensor.dtype and np.array_equal(written[name].bits(), tensor.bits())
        for name, tensor in tensors.items()
    )


def _adapters(source: Source) -> tuple[dict[str, LazyTensor], Adapters]:
    """Verify a checkpoint with adapters; list its trained tensors by PEFT's names, in order."""
    if source.adapted is None:
        raise UserError(
            f"{source.path}: this is a whole model, without adapters",
            "leave --adapter-only out",
        )
    if source.head == "pooler":
        raise UserError(
            f"{source.path}: its head has two layers, which no class of transformers has",
            "leave --adapter-only out, and the whole model is written with its head",
        )
    verify(source)
    stored: Mapping[str, LazyTensor] = source.adapted.tensors
    ours = names(source.model, source.adapted.lora, source.head)
    pairs = sorted(ours.items(), key=lambda pair: pair[1])
    return {theirs: stored[ours] for ours, theirs in pairs}, source.adapted


def write_config(folder: Path, model: Model, lora: Lora, head: Head, base: Path) -> None:
    """Write what PEFT's LoraConfig needs to know.

    Args:
        folder: Where the weights are.
        model: The architecture.
        lora: The adapters' settings.
        head: What is on top.
        base: The model they belong to; PEFT loads it by itself if it is one of Hugging Face's.
    """
    (folder / CONFIG).write_text(_config(model, lora, head, base), encoding="utf-8")


def _config(model: Model, lora: Lora, head: Head, base: Path, name: str | None = None) -> str:
    is_hf = (base / "config.json").is_file() and hf_files.has_weights(base)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if head == "lm" else "SEQ_CLS",
        "base_model_name_or_path": name or (str(base) if is_hf else None),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "bias": "none",
        "target_modules": list(lora.modules(model.family)),
        "modules_to_save": None if head == "lm" else [HEAD_MODULES[head]],
        "inference_mode": True,
    }
    return json.dumps(config, indent=2, sort_keys=True) + "\n"
