"""Mistral 7B from v0.3 on, and what is like it: grouped queries, and no sliding window."""

from collections.abc import Mapping
from typing import Any

from alignctl.config.sections import Model
from alignctl.errors import UserError
from alignctl.models import llama_like


def from_hf(config: Mapping[str, Any], *, where: str, vocab_divisor: int) -> Model:
    """Read a transformers `MistralConfig`.

    Raises:
        UserError: The config asks for something that is not supported, such as a sliding window,
            which transformers also takes for granted where the key is missing.
    """
    if "sliding_window" not in config:
        raise UserError(
            f"{where}: sliding_window is missing, and transformers then takes 4096",
            "attention is over all tokens before; Mistral 7B v0.3 says null",
        )
    has = "plain rotary positions, SwiGLU, no biases, no sliding window"
    return llama_like.read("mistral", config, where=where, vocab_divisor=vocab_divisor, has=has)


def to_hf(model: Model) -> dict[str, Any]:
    """Build the transformers config of a model that has none of its own."""
    return llama_like.write(
        model, model_type="mistral", head_dim=model.head_width, sliding_window=None
    )


FAMILY = llama_like.describe(
    "mistral",
    hf_model_type="mistral",
    from_hf=from_hf,
    to_hf=to_hf,
    legacy_tokenizer="HuggingFaceTokenizer",
)
