"""The streamed forward pass of transformers: its modules and its plain attention, on the CPU.

Notation used for tensor shapes:
    - T: tokens of the probe; R: vocabulary rows of the probe; H: hidden size
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.models.bloom.modeling_bloom import BloomForCausalLM
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from typing_extensions import override

from alignctl.checkpoints.tensors.lazy import LazyTensor
from alignctl.config.sections import Head, Model
from alignctl.engines.streamed.forward import Probe, Scratch, StreamedForward, one_layer
from alignctl.models.families import FAMILIES
from alignctl.models.weight_map import Weight

_MASKED = torch.finfo(torch.float32).min


class TransformersForward(StreamedForward):
    """Transformers' model of the family, its parts called as its own forward pass calls them."""

    def __init__(
        self,
        tensors: Mapping[str, LazyTensor],
        model: Model,
        head: Head,
        probe: Probe,
        scratch: Scratch,
    ) -> None:
        """Build the model. The arguments are those of `StreamedForward`."""
        self._is_bloom = model.family == "bloom"
        kind: Any = BloomForCausalLM if self._is_bloom else LlamaForCausalLM
        content = FAMILIES[model.family].to_hf(one_layer(model, probe))
        config = kind.config_class(**content, attn_implementation="eager")
        with torch.device("meta"):
            self._module: Any = kind(config).float()
        self._base = self._module.base_model
        self._context = self._layer_arguments(config, len(probe.tokens))
        super().__init__(self._module, tensors, model, head, probe, scratch)

    def _layer_arguments(self, config: Any, num_tokens: int) -> dict[str, Any]:
        """Build the arguments of every layer: causal mask `[1, 1, T, T]`, and position terms."""
        mask = torch.full((1, 1, num_tokens, num_tokens), _MASKED).triu(1)
        if self._is_bloom:
            alibi = self._base.build_alibi_tensor(
                torch.ones(1, num_tokens), config.n_head, torch.float32
            )
            return {"attention_mask": mask, "alibi": alibi}
        rotary = type(self._base.rotary_emb)(config)  # the model's own has its frequencies on meta
        positions = rotary(torch.empty(0), torch.arange(num_tokens)[None])
        return {"attention_mask": mask, "position_embeddings": positions}

    @override
    def embed(self) -> Tensor:
        hidden: Tensor = self._base.get_input_embeddings()(self._probe.tokens[None])
        if self._is_bloom:
            hidden = self._base.word_embeddings_layernorm(hidden)
        return hidden.squeeze(0)

    @override
    def _run_layer(self, hidden: Tensor) -> Tensor:
        output: Tensor
        if self._is_bloom:
            output, _ = self._base.h[0](hidden[None], **self._context)
        else:
            output = self._base.layers[0](hidden[None], **self._context)
        return output.squeeze(0)

    @override
    def output(self, hidden: Tensor) -> Tensor:
        norm = self._base.ln_f if self._is_bloom else self._base.norm
        top = self._module.lm_head if self._score is None else self._score
        output: Tensor = top(norm(hidden[None]))
        return output.squeeze(0)

    @override
    def _names(self, row: Weight) -> Sequence[str]:
        return row.hf

    @override
    def _parts(self, row: Weight, full: Tensor) -> Sequence[Tensor]:
        return row.layout.split(full, self._model)
