"""Models of a few kilobytes on disk, written without transformers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from alignctl.checkpoints.formats import hf
from alignctl.checkpoints.manifest import Recorder
from alignctl.checkpoints.tensors.dtypes import bits_of
from alignctl.checkpoints.tensors.lazy import LazyTensor, Spec
from alignctl.config.families import TRAITS
from alignctl.config.sections import Head, Model, RopeScaling
from alignctl.models.families import FAMILIES, config_of_head, weight_map
from alignctl.models.weight_map import hf_shapes

Family = str
FAMILY_NAMES: tuple[Family, ...] = tuple(FAMILIES)


def architecture(family: Family, *, tie: bool | None = None) -> Model:
    """Two layers and 11 tokens; grouped queries, and what else the family may have."""
    is_bloom = family == "bloom"
    scaling = RopeScaling(
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    return Model(
        family=family,
        num_layers=2,
        hidden_size=16,
        num_attention_heads=4,
        num_query_groups=4 if is_bloom else 2,
        ffn_hidden_size=64 if is_bloom else 24,
        vocab_size=11,
        max_position_embeddings=2048 if is_bloom else 64,
        rotary_base=None if is_bloom else 10000.0,
        rope_scaling=scaling if TRAITS[family].may_scale_positions else None,
        head_dim=6 if TRAITS[family].may_set_head_dim else None,
        tie_embeddings=is_bloom if tie is None else tie,
    )


def random_weights(
    model: Model, dtype: torch.dtype = torch.float32, seed: int = 0, head: Head = "lm"
) -> dict[str, Tensor]:
    """Every Hugging Face tensor of a model."""
    generator = torch.Generator().manual_seed(seed)
    shapes = hf_shapes(weight_map(model, head), model)
    return {name: torch.randn(s, generator=generator).to(dtype) for name, s in shapes.items()}


def write_config(folder: Path, model: Model, *, head: Head = "lm", **changes: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = FAMILIES[model.family].to_hf(model) | changes
    content |= config_of_head(model, head, content)
    (folder / "config.json").write_text(json.dumps(content))


def made(tensors: Mapping[str, LazyTensor]) -> dict[str, Tensor]:
    """All of them in memory."""
    return {name: tensor.make() for name, tensor in tensors.items()}


def lazy(tensors: Mapping[str, Tensor]) -> dict[str, LazyTensor]:
    """As if they were still on disk."""
    return {name: LazyTensor.holding(tensor.clone(), name) for name, tensor in tensors.items()}


def write_weights(folder: Path, tensors: Mapping[str, Tensor], *, max_shard_bytes: int) -> None:
    """Safetensors as a conversion writes them."""
    specs = {name: Spec.of(tensor) for name, tensor in tensors.items()}
    with Recorder() as recorder:
        shards = hf.shards(specs, max_shard_bytes)
        stream = (bits_of(tensors[name]) for shard in shards for name in shard)
        hf.write(folder, shards, stream, recorder=recorder)
        recorder.records(folder)


def write_hf(
    folder: Path,
    model: Model,
    weights: Mapping[str, Tensor] | None = None,
    *,
    max_shard_bytes: int = 1 << 30,
) -> Path:
    """A Hugging Face folder, in shards of at most so many bytes."""
    write_config(folder, model)
    tensors = random_weights(model) if weights is None else weights
    write_weights(folder, tensors, max_shard_bytes=max_shard_bytes)
    return folder


def write_single(folder: Path, model: Model, weights: Mapping[str, Tensor]) -> Path:
    """A Hugging Face folder as safetensors itself writes it, whatever is in it."""
    write_config(folder, model)
    save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def is_identical(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    """The same names, dtypes, shapes and bits (NaN and -0 included)."""
    return ours.keys() == theirs.keys() and all(
        a.dtype == theirs[name].dtype
        and a.shape == theirs[name].shape
        and np.array_equal(bits_of(a), bits_of(theirs[name]))
        for name, a in ours.items()
    )
