"""Adapters as a folder of PEFT's: adapter_config.json and adapter_model.safetensors.

An adapter of ours is that of one Hugging Face linear layer already, so tensors are renamed and
written as they are.
"""

import json
from pathlib import Path
from typing import Any

from alignctl.checkpoints import safetensors_file
from alignctl.checkpoints.adapted import Adapters, verify
from alignctl.checkpoints.lazy import LazyTensor, check_finite
from alignctl.checkpoints.source import Source
from alignctl.errors import RunError, UserError
from alignctl.models.adapters import PEFT_PREFIX, adapter_map
from alignctl.models.weight_map import SCORE_HEADS

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def write(source: Source, folder: Path) -> None:
    """Writes the adapters of a model, with its score head if it has one.

    Args:
        source: A checkpoint with adapters.
        folder: An empty folder.

    Raises:
        UserError: The source has no adapters, is damaged, or has a head that transformers lacks.
        RunError: What was written is not what was read.
    """
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
    tensors = _tensors(source, source.adapted)
    with (folder / WEIGHTS).open("wb") as stream:
        writer = safetensors_file.Writer(stream, tensors)
        for tensor in tensors.values():
            made = tensor.make()
            check_finite(made, tensor.where)
            writer.write(made)
    config = json.dumps(_config(source, source.adapted), indent=2, sort_keys=True)
    (folder / CONFIG).write_text(config + "\n", encoding="utf-8")
    written = safetensors_file.read(folder / WEIGHTS)
    for name, tensor in tensors.items():
        if not written[name].make().equal(tensor.make()):
            raise RunError(f"{folder / WEIGHTS}: {name} differs from {tensor.where}")


def _tensors(source: Source, adapted: Adapters) -> dict[str, LazyTensor]:
    """By PEFT's names, in their order."""
    found = {
        row.hf[0]: adapted.tensors[name]
        for name, row in adapter_map(source.model, adapted.lora).items()
    }
    if source.head != "lm":
        heads = SCORE_HEADS[source.head]
        found |= {PEFT_PREFIX + row.hf[0]: source.tensors[row.megatron] for row in heads}
    return dict(sorted(found.items()))


def _config(source: Source, adapted: Adapters) -> dict[str, Any]:
    """What PEFT's LoraConfig needs to know; a base of Megatron's has no name that it could load."""
    base, is_policy = adapted.base, source.head == "lm"
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if is_policy else "SEQ_CLS",
        "base_model_name_or_path": str(base.path) if base.kind == "hf" else None,
        "r": adapted.lora.rank,
        "lora_alpha": adapted.lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(adapted.lora.modules(source.model.family)),
        "modules_to_save": None if is_policy else ["score"],
        "inference_mode": True,
    }
