"""Llama 2: RMSNorm, SwiGLU, rotary positions, no biases; multi-head or grouped-query attention."""

from collections.abc import Mapping
from typing import Any

from alignctl.config.sections import Model
from alignctl.models import llama_like


def from_hf(config: Mapping[str, Any], *, where: str, vocab_divisor: int) -> Model:
    """Read a transformers `LlamaConfig`.

    Raises:
        UserError: The config asks for something that Llama 2 does not have (scaled rotary
            positions, biases, another activation, a head size that is not hidden / heads).
    """
    has = "plain rotary positions, SwiGLU, no biases"
    return llama_like.read("llama2", config, where=where, vocab_divisor=vocab_divisor, has=has)


def to_hf(model: Model) -> dict[str, Any]:
    """Build the transformers config of a model that has none of its own."""
    return llama_like.write(model, model_type="llama", attention_bias=False, mlp_bias=False)


FAMILY = llama_like.describe(
    "llama2",
    hf_model_type="llama",
    from_hf=from_hf,
    to_hf=to_hf,
    legacy_tokenizer="Llama2Tokenizer",
)
