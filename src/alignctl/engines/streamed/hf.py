"""The streamed forward pass of transformers: its modules and its plain attention, on the CPU.

Notation used for tensor shapes:
    - T: tokens of the probe; R: vocabulary rows of the probe; H: hidden size
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig
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
        self._family = FAMILIES[model.family]
        content = self._family.to_hf(one_layer(model, probe))
        config: Any = AutoConfig.for_model(**content, attn_implementation="eager")
        with torch.device("meta"):
            self._module: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).float()
        self._base = self._module.base_model
        self._context = self._layer_arguments(model, config, len(probe.tokens))
        super().__init__(self._module, tensors, model, head, probe, scratch)

    def _layer_arguments(self, model: Model, config: Any, num_tokens: int) -> dict[str, Any]:
        """Build the arguments of every layer: causal mask `[1, 1, T, T]`, and position terms."""
        mask = torch.full((1, 1, num_tokens, num_tokens), _MASKED).triu(1)
        if model.traits.positions == "alibi":
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
        if self._model.traits.has_embedding_norm:
            hidden = self._part("embedding.layernorm")(hidden)
        return hidden.squeeze(0)

    @override
    def _run_layer(self, hidden: Tensor) -> Tensor:
        norm = self._family.hf_module("decoder.layers.{layer}.input_layernorm")
        layer = self._base.get_submodule(norm.format(layer=0).rpartition(".")[0])
        output = layer(hidden[None], **self._context)
        # Bloom's also returns what would be attention weights.
        whole: Tensor = output[0] if isinstance(output, tuple) else output
        return whole.squeeze(0)

    @override
    def output(self, hidden: Tensor) -> Tensor:
        norm = self._part("decoder.final_layernorm")
        top = self._module.lm_head if self._score is None else self._score
        output: Tensor = top(norm(hidden[None]))
        return output.squeeze(0)

    def _part(self, ours: str) -> Any:
        return self._base.get_submodule(self._family.hf_module(ours))

    @override
    def _names(self, row: Weight) -> Sequence[str]:
        return row.hf

    @override
    def _parts(self, row: Weight, full: Tensor) -> Sequence[Tensor]:
        return row.layout.split(full, self._model)
