"""Qwen 3, dense: as Llama, with norms on queries and keys and a head width of its own."""

from collections.abc import Mapping
from typing import Any

from alignctl.config.sections import Model
from alignctl.errors import UserError
from alignctl.models import llama_like


def from_hf(config: Mapping[str, Any], *, where: str, vocab_divisor: int) -> Model:
    """Read a transformers `Qwen3Config`; its sliding window is off unless another key turns it on.

    Raises:
        UserError: The config asks for something that Qwen 3 does not have, or turns it on.
    """
    llama_like.refuse_window(config, where)
    if config.get("head_dim") is None:
        raise UserError(
            f"{where}: head_dim is missing, and transformers then takes 128, whatever hidden_size",
            "say the width of an attention head",
        )
    has = "plain rotary positions, SwiGLU, norms of queries and keys, no biases"
    return llama_like.read("qwen3", config, where=where, vocab_divisor=vocab_divisor, has=has)


def to_hf(model: Model) -> dict[str, Any]:
    """Build the transformers config of a model that has none of its own."""
    return llama_like.write(
        model,
        model_type="qwen3",
        head_dim=model.head_width,
        use_sliding_window=False,
        sliding_window=None,
        attention_bias=False,
    )


FAMILY = llama_like.describe(
    "qwen3",
    hf_model_type="qwen3",
    from_hf=from_hf,
    to_hf=to_hf,
    legacy_tokenizer=None,
    judges=("sliding_window",),
)
