"""Llama models of full size with random weights, written one tensor at a time."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from alignctl.checkpoints.formats import hf
from alignctl.checkpoints.manifest import Recorder
from alignctl.checkpoints.tensors.dtypes import BFLOAT16, Bits
from alignctl.checkpoints.tensors.lazy import Spec
from alignctl.config.sections import Model
from alignctl.models.families import FAMILIES, weight_map
from alignctl.models.weight_map import hf_shapes

SHAPES = {
    "1b": (22, 2048, 32, 4, 5632),
    "7b": (32, 4096, 32, 32, 11008),
}
"""Layers, hidden size, query heads, groups and feed-forward size: TinyLlama's and Llama 2 7B's."""

_NOISE = 1 << 24
_ONE = 0x3F80


def write(folder: Path, size: str) -> int:
    """Write a model as a Hugging Face folder in shards of 5 GB.

    Returns:
        Bytes of its weights.
    """
    layers, hidden, heads, groups, ffn = SHAPES[size]
    model = Model(
        family="llama2",
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_query_groups=groups,
        ffn_hidden_size=ffn,
        vocab_size=32000,
        max_position_embeddings=2048,
        rotary_base=10000.0,
        tie_embeddings=False,
    )
    folder.mkdir(parents=True)
    config = FAMILIES["llama2"].to_hf(model) | {"dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    shapes = hf_shapes(weight_map(model), model)
    specs = {name: Spec(shape, BFLOAT16) for name, shape in shapes.items()}
    shards = hf.shards(specs, 5 * 10**9)
    with Recorder() as recorder:
        hf.write(folder, shards, _weights(shards), recorder=recorder)
        recorder.records(folder)
    return sum(spec.num_bytes for spec in specs.values())


def _weights(shards: list[dict[str, Spec]]) -> Iterator[Bits]:
    """Yield weights as at the start of training, cut from one block of noise at many places."""
    normal = np.random.default_rng(0).standard_normal(_NOISE, dtype=np.float32)
    noise = ((0.02 * normal).view(np.uint32) >> 16).astype(np.uint16)  # the upper half is bfloat16
    for shard in shards:
        for number, (name, spec) in enumerate(shard.items()):
            if "norm" in name:
                yield np.full(spec.shape, _ONE, np.uint16)
                continue
            flat = np.empty(spec.numel, np.uint16)
            for place in range(0, spec.numel, _NOISE):
                part = flat[place : place + _NOISE]
                part[:] = np.roll(noise, 97 * number + place // _NOISE)[: len(part)]
            yield flat.reshape(spec.shape)
