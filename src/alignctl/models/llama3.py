"""Llama 3, 3.1, 3.2, 3.3: as Llama 2, with positions that may be scaled, and small ones tied."""

from collections.abc import Mapping
from typing import Any

from alignctl.config.sections import Model
from alignctl.models import hf_rotary, llama2, llama_like

_BASE = 500_000.0
"""Of the rotary positions, in every Llama 3."""


def is_own(config: Mapping[str, Any]) -> bool:
    """Tell a Llama 3 from a Llama 2, which has the same class in transformers."""
    told = [config.get(key) for key in ("rope_scaling", "rope_parameters")]
    mappings = [each for each in told if isinstance(each, Mapping)]
    bases = [config.get("rope_theta"), *(each.get("rope_theta") for each in mappings)]
    return _BASE in bases or any(hf_rotary.kind_of(each) == "llama3" for each in mappings)


def from_hf(config: Mapping[str, Any], *, where: str, vocab_divisor: int) -> Model:
    """Read a transformers `LlamaConfig` for which `is_own`.

    Raises:
        UserError: The config asks for something that Llama 3 does not have.
    """
    has = "rotary positions, plain or scaled, SwiGLU, no biases"
    return llama_like.read("llama3", config, where=where, vocab_divisor=vocab_divisor, has=has)


FAMILY = llama_like.describe(
    "llama3",
    hf_model_type="llama",
    from_hf=from_hf,
    to_hf=llama2.to_hf,
    legacy_tokenizer="Llama3Tokenizer",
    is_own=is_own,
)
