"""The families as Megatron-Core models.

Only what Megatron-Core lacks is written here: norms that know sequence parallelism without
Transformer Engine, attention with documents and ALiBi, a norm after the embedding, and an output
layer that is computed only where a token is learned.
"""

from functools import partial
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import gelu, silu

from alignctl.config.kernels import Activation, Kernels
from alignctl.config.sections import Head, Model, Parallel
from alignctl.data.batch import IGNORE
from alignctl.models.attention import (
    AlibiAttention,
    DocumentAttention,
    attend_documents,
    choose_attention,
)
from alignctl.models.chunked_logprobs import chunked_logprobs
from alignctl.models.rotary import scale_frequencies
from alignctl.models.score_head import score_head
from alignctl.models.vocab_parallel import Softmax, vocab_parallel_logprobs
from alignctl.models.weight_map import HEAD_MODULES


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm, marked so that sequence parallelism sums its gradient over ranks."""

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any
    ) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        _mark_sequence_parallel(self, config)


class LayerNorm(torch.nn.LayerNorm):
    """torch's LayerNorm, marked so that sequence parallelism sums its gradients over ranks."""

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any
    ) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        _mark_sequence_parallel(self, config)


def _mark_sequence_parallel(norm: torch.nn.Module, config: TransformerConfig) -> None:
    for parameter in norm.parameters():
        # Megatron reads this attribute of its own from each parameter.
        parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


def gelu_tanh(x: Tensor) -> Tensor:
    """Compute Bloom's GELU: the tanh approximation."""
    return gelu(x, approximate="tanh")


NORMS: dict[str, type[RMSNorm | LayerNorm]] = {"RMSNorm": RMSNorm, "LayerNorm": LayerNorm}
ACTIVATIONS = {"silu": silu, "gelu_tanh": gelu_tanh}
FUSED = {"silu": silu, "gelu_tanh": gelu}
"""Their names where Megatron fuses them: its GELU is the tanh approximation, which it calls so."""


class LanguageModel(GPTModel):
    """A GPTModel whose last stage returns log-probabilities of the labels it is given.

    Attributes:
        temperature: What logits are divided by before log-probabilities are taken.
        with_entropy: Whether the entropy is computed too, where gradients are.
        logits_chunk_size: Most positions whose logits exist at a time; None: as many as there are.
    """

    temperature = 1.0
    with_entropy = False
    logits_chunk_size: int | None = None

    def __init__(self, model: Model, config: TransformerConfig, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        self.model = model
        if model.rope_scaling:
            # Megatron's own scaling knows only Llama 3.1's factors.
            rotary = self.rotary_pos_emb
            rotary.inv_freq = scale_frequencies(rotary.inv_freq, model.rope_scaling)
        if model.traits.has_embedding_norm and self.pre_process:
            # A hook, since GPTModel builds its embedding itself and ties it to the last stage's.
            self.embedding.layernorm = NORMS[model.traits.normalization](
                config, config.hidden_size, eps=config.layernorm_epsilon
            )
            self.embedding.register_forward_hook(lambda module, _, out: module.layernorm(out))
        if self.post_process:
            # The hidden states are gathered before the learned rows are picked, so the output
            # layer itself must not gather them again.
            self.output_layer.sequence_parallel = False
            self.output_layer.allreduce_dgrad = self.pg_collection.tp.size() > 1

    def _preprocess(self, **kwargs: Any) -> Any:
        """Do as GPTModel, but take each token's rotary angles `[T, 1, D]` by its position."""
        embedded, angles, *others = super()._preprocess(**kwargs)
        if angles is not None:
            angles = angles[kwargs["packed_seq_params"].positions].squeeze(1)
        return embedded, angles, *others

    def _postprocess(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        """Return hidden states on inner stages; on the last one what `labels` asks for.

        With labels `[1, T]`: (log-probabilities `[T]` fp32, most likely `[T]` bool, entropies `[T]`
        fp32 if they are wanted), all zero where the label is IGNORE. Without: this rank's logits
        `[T, V / tp]`.
        """
        if not self.post_process:
            return hidden_states
        hidden_states = self._gather(hidden_states)
        if (labels := kwargs["labels"]) is None:
            return self._logits(hidden_states)
        labels = labels[0]
        learned = kwargs["packed_seq_params"].learned
        is_learned = labels[learned] != IGNORE
        logprobs, is_most_likely, *entropy = self._logprobs(
            hidden_states[learned], labels[learned].clamp(min=0)
        )
        hits = torch.zeros_like(labels, dtype=torch.bool)
        return (
            _spread(logprobs * is_learned, learned, labels),
            hits.index_put((learned,), is_most_likely & is_learned),
            *(_spread(each * is_learned, learned, labels) for each in entropy),
        )

    def _gather(self, hidden_states: Tensor) -> Tensor:
        """Gather all hidden states `[T, H]` on every rank, from this one's `[T or T / tp, 1, H]`.

        What follows has the same gradient on every rank (the output layer's backward sums over
        ranks itself), so sequence parallelism only cuts it here and does not sum it once more.
        """
        if self.config.sequence_parallel:
            hidden_states = tensor_parallel.gather_from_sequence_parallel_region(
                hidden_states, tensor_parallel_output_grad=False, group=self.pg_collection.tp
            )
        return hidden_states.squeeze(1)

    def _logprobs(self, hidden_states: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """Compute log-probabilities of targets `[N]`, hits, and entropies if they are wanted."""
        softmax = Softmax(
            self.pg_collection.tp,
            self.model.vocab_size,
            self.temperature,
            with_entropy=self.with_entropy and torch.is_grad_enabled(),
        )
        size = self.logits_chunk_size
        if size is None or len(targets) <= size:
            return vocab_parallel_logprobs(self._logits(hidden_states), targets, softmax)
        weight = self._output_weight
        return chunked_logprobs(hidden_states, weight, self._logits, targets, softmax, size)

    @property
    def _output_weight(self) -> Tensor:
        """Weight of the output layer: its own, or that of the embedding."""
        tied = self.share_embeddings_and_output_weights
        weight: Tensor = (
            self.shared_embedding_or_output_weight() if tied else self.output_layer.weight
        )
        return weight

    def _logits(self, hidden_states: Tensor) -> Tensor:
        """Compute the logits of this rank's vocabulary `[N, hidden]` -> `[N, V / tp]`."""
        # A weight of its own is the layer's to fetch: a conversion's check loads it at the call.
        weight = self._output_weight if self.share_embeddings_and_output_weights else None
        logits: Tensor
        logits, _ = self.output_layer(hidden_states[:, None], weight=weight)
        # Not logits[:, 0]: the gradient of an index is a tensor of zeros, written into.
        return logits.squeeze(1)


def _spread(values: Tensor, places: Tensor, like: Tensor) -> Tensor:
    """Put values `[N]` at their places, zeros elsewhere, in the shape of `like`."""
    return values.new_zeros(like.shape).index_put((places,), values)


class RewardModel(LanguageModel):
    """A LanguageModel with a score head in the place of its output layer.

    It scores whole documents; as a value model, every position whose label is learned.

    Every tensor-parallel rank holds the whole head and computes the same scores from all hidden
    states, so the head's gradient is whole on each of them, with sequence parallelism too.
    """

    def __init__(
        self,
        model: Model,
        config: TransformerConfig,
        *,
        head: Head,
        is_value: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, config, **kwargs)
        self.is_value = is_value
        if self.post_process:
            weight = self.output_layer.weight
            del self.output_layer
            made = score_head(head, model.hidden_size, device=weight.device, dtype=weight.dtype)
            self.add_module(HEAD_MODULES[head], made)
            self._score = HEAD_MODULES[head]

    def _postprocess(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        """Return hidden states on inner stages; on the last one `(scores,)`, `[D]` fp32.

        A score is that of the document's last input: `packed_seq_params` tells where it is. A value
        model returns `(values,)`, `[T]` fp32.
        """
        if not self.post_process:
            return hidden_states
        hidden_states = self._gather(hidden_states)
        score = self.get_submodule(self._score)
        if self.is_value:
            labels = kwargs["labels"][0]
            learned = kwargs["packed_seq_params"].learned
            is_learned = labels[learned] != IGNORE
            values: Tensor = score(hidden_states[learned]).squeeze(1)
            return (_spread(values * is_learned, learned, labels),)
        scores: Tensor = score(hidden_states[kwargs["packed_seq_params"].ends])
        return (scores.squeeze(1),)

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Describe the weights for Megatron; GPTModel's own would look for an output layer."""
        state: dict[str, Any] = MegatronModule.sharded_state_dict(self, *args, **kwargs)
        return state


def activation_fields(model: Model, activation: Activation) -> dict[str, Any]:
    """List the fields of TransformerConfig that say what computes a model's activation."""
    is_fused = activation == "fused"
    functions = FUSED if is_fused else ACTIVATIONS
    return {
        "activation_func": functions[model.traits.activation],
        "bias_activation_fusion": is_fused,
    }


def transformer_config(
    model: Model, parallel: Parallel, *, dtype: torch.dtype, **training: Any
) -> TransformerConfig:
    """Build Megatron's view of the model and its layout.

    Args:
        model: The architecture.
        parallel: The layout.
        dtype: Parameters, activations and what pipeline stages exchange.
        training: Further fields that the engine owns, `activation_fields` among them.
    """
    traits = model.traits
    full = parallel.recompute == "full"
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        kv_channels=model.head_width,
        ffn_hidden_size=model.ffn_hidden_size,
        normalization=traits.normalization,
        layernorm_epsilon=model.norm_epsilon,
        gated_linear_unit=traits.is_gated,
        add_bias_linear=traits.has_biases,
        add_qkv_bias=traits.has_qkv_bias,
        # Of a norm of queries or keys each rank sees its own heads: Megatron sums its gradients.
        qk_layernorm=traits.has_qk_norm,
        attention_dropout=model.attention_dropout,
        hidden_dropout=model.hidden_dropout,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        tensor_model_parallel_size=parallel.tp,
        pipeline_model_parallel_size=parallel.pp,
        sequence_parallel=parallel.sequence_parallel and parallel.tp > 1,
        # Micro batches have as many tokens as their documents have.
        variable_seq_lengths=parallel.pp > 1,
        # Refused beside variable lengths otherwise, although there are no experts here.
        moe_token_dispatcher_type="alltoall",
        # Against an error of PyTorch's that old versions had: after each tensor that is sent.
        batch_p2p_sync=False,
        recompute_granularity=None if parallel.recompute == "none" else parallel.recompute,
        recompute_method="uniform" if full else None,
        recompute_num_layers=1 if full else None,
        # Weights always come from a checkpoint: nothing is spent on random ones.
        perform_initialization=False,
        gradient_accumulation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
        calculate_per_token_loss=True,
        **training,
    )


def _layer_spec(model: Model, kernels: Kernels) -> ModuleSpec:
    traits = model.traits
    spec = get_gpt_layer_local_spec(
        normalization=traits.normalization, qk_layernorm=traits.has_qk_norm
    )
    norm = NORMS[traits.normalization]
    spec.submodules.input_layernorm = norm
    spec.submodules.pre_mlp_layernorm = norm
    attention = spec.submodules.self_attention.submodules
    if traits.has_qk_norm:
        attention.q_layernorm = attention.k_layernorm = norm
    if choose_attention(model, kernels) == "transformer_engine":
        attention.core_attention = _transformer_engine_attention()
    else:
        is_alibi = traits.positions == "alibi"
        attention.core_attention = AlibiAttention if is_alibi else DocumentAttention
    return spec


def _transformer_engine_attention() -> type:
    """Make Transformer Engine's attention with packed sequences."""
    from megatron.core.extensions.transformer_engine import TEDotProductAttention

    class SharingAttention(TEDotProductAttention):
        """Transformer Engine's, which knows of no piece that several documents begin with."""

        def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any) -> Any:
            documents = kw.pop("packed_seq_params")
            if documents.pieces.parents:
                return attend_documents(self, query, key, value, documents)
            packed = documents.with_boundaries()
            return super().forward(query, key, value, *args, packed_seq_params=packed, **kw)

    return SharingAttention


def build(
    model: Model,
    config: TransformerConfig,
    groups: ProcessGroupCollection,
    *,
    max_sequence_length: int,
    kernels: Kernels,
    head: Head = "lm",
    is_value: bool = False,
) -> LanguageModel:
    """Build this rank's part of the model, its weights not set.

    Its pipeline stages hold equal shares of layers.
    """
    layer, stage = _layer_spec(model, kernels), groups.pp.rank()
    block = TransformerBlockSubmodules(
        layer_specs=[layer] * get_num_layers_to_build(config, pp_rank=stage),
        layer_norm=NORMS[model.traits.normalization],
    )
    is_policy = head == "lm"
    return (LanguageModel if is_policy else partial(RewardModel, head=head, is_value=is_value))(
        model,
        config,
        transformer_layer_spec=block,
        vocab_size=model.padded_vocab_size(config.tensor_model_parallel_size),
        max_sequence_length=max_sequence_length,
        pre_process=stage == 0,
        post_process=stage == groups.pp.size() - 1,
        share_embeddings_and_output_weights=model.tie_embeddings and is_policy,
        position_embedding_type="rope" if model.traits.is_rotary else "none",
        rotary_base=model.rotary_base or 10000,
        pg_collection=groups,
    )
