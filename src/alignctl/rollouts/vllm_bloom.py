"""vLLM's Bloom, with the activation that Bloom was trained with.

vLLM (0.32) computes GELU by the error function; Bloom has its tanh approximation, in transformers
as in Megatron-LM. Log-probabilities differ by up to 1e-3 otherwise.
"""

from typing import Any

from vllm import ModelRegistry
from vllm.model_executor.layers.activation import get_act_fn
from vllm.model_executor.models.bloom import BloomForCausalLM


class TanhBloom(BloomForCausalLM):
    """Bloom as transformers computes it."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        for layer in self.transformer.h:
            layer.mlp.gelu_impl = get_act_fn("gelu_pytorch_tanh")


def register() -> None:
    """Make vLLM take this class for models that say they are Bloom."""
    ModelRegistry.register_model("BloomForCausalLM", TanhBloom)
