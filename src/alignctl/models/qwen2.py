"""Qwen 2 and 2.5: as Llama, with biases on queries, keys and values; small ones are tied."""

from collections.abc import Mapping
from typing import Any

from alignctl.config.sections import Model
from alignctl.models import llama_like


def from_hf(config: Mapping[str, Any], *, where: str, vocab_divisor: int) -> Model:
    """Read a transformers `Qwen2Config`; its sliding window is off unless another key turns it on.

    Raises:
        UserError: The config asks for something that Qwen 2 does not have, or turns it on.
    """
    llama_like.refuse_window(config, where)
    has = "plain rotary positions, SwiGLU, biases on queries, keys and values only"
    return llama_like.read("qwen2", config, where=where, vocab_divisor=vocab_divisor, has=has)


def to_hf(model: Model) -> dict[str, Any]:
    """Build the transformers config of a model that has none of its own."""
    return llama_like.write(
        model, model_type="qwen2", use_sliding_window=False, sliding_window=None
    )


FAMILY = llama_like.describe(
    "qwen2",
    hf_model_type="qwen2",
    from_hf=from_hf,
    to_hf=to_hf,
    legacy_tokenizer="HuggingFaceTokenizer",
    judges=("sliding_window",),
)
