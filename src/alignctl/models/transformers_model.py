"""The families with transformers' layers, for engines that keep each layer whole.

The layers are transformers' own; attention is ours, so that documents are laid end to end here as
well, and what is on top computes only what a loss needs. Parameters have the names that they have
in a Hugging Face checkpoint.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Linear, Module
from torch.utils.checkpoint import checkpoint
from transformers import MODEL_MAPPING, AttentionInterface, AutoConfig
from transformers.initialization import no_init_weights
from transformers.models.bloom.modeling_bloom import BloomAttention, dropout_add
from typing_extensions import override

from alignctl.config.sections import Head, Lora, Model
from alignctl.data.batch import IGNORE, Pieces
from alignctl.models.document_attention import Alibi, attend
from alignctl.models.families import FAMILIES
from alignctl.models.score_head import score_head
from alignctl.models.transformers_lora import add_peft
from alignctl.models.vocab_parallel import Softmax, vocab_parallel_logprobs
from alignctl.models.weight_map import HEAD_MODULES

_ATTENTION = "alignctl_documents"
"""Name of our attention among transformers' implementations. None of its masks has that name, so
none is made: they would be as large as all tokens squared."""


class TransformersModel(Module):
    """A model that returns log-probabilities of the targets it is given, or scores.

    Attributes:
        architecture: The model.
        head: What is on top.
    """

    def __init__(
        self,
        architecture: Model,
        head: Head,
        *,
        lora: Lora | None,
        recompute: str,
        alone: dist.ProcessGroup,
    ) -> None:
        """Build the model; its weights are not set.

        Args:
            architecture: The model.
            head: What is on top.
            lora: Adapters, beside which only the head is trained; None where all weights are.
            recompute: `Parallel.recompute`.
            alone: A process group of this rank only: here no vocabulary is cut.
        """
        super().__init__()
        self.architecture, self.head = architecture, head
        self._alone = alone
        self._attend = _Attend(is_recomputed=recompute == "selective")
        self._prefix = FAMILIES[architecture.family].hf_prefix.removesuffix(".")
        layers = _layers(architecture, self._attend)
        self.add_module(self._prefix, layers)
        if head == "lm":
            self.lm_head = Linear(architecture.hidden_size, architecture.vocab_size, bias=False)
            if architecture.tie_embeddings:
                self.lm_head.weight = layers.get_input_embeddings().weight
        else:
            where = {"device": layers.device, "dtype": layers.dtype}
            self.add_module(HEAD_MODULES[head], score_head(head, architecture.hidden_size, **where))
        if lora is not None:
            add_peft(self, layers, architecture, lora)
        if recompute == "full":
            layers.gradient_checkpointing_enable({"use_reentrant": False})

    @override
    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        pieces: Pieces,
        read: Tensor,
        targets: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Run one micro batch.

        Args:
            tokens: Inputs `[T]`.
            positions: Of each token in its documents `[T]`.
            pieces: Where documents are.
            read: Places that something is computed for `[N]`, one at least: of a policy with
                targets those that learn, of a reward model each document's last one.
            targets: `[T]`, IGNORE where nothing is learned; None for all logits.

        Returns:
            Of a policy the fields of `Output`, or logits `[T, V]` if there are no targets; of a
            reward model those of `Scores`.
        """
        self._attend.pieces = pieces
        is_rotary = self.architecture.traits.is_rotary
        layers = self.get_submodule(self._prefix)
        hidden = layers(
            input_ids=tokens[None],
            use_cache=False,
            **({"position_ids": positions[None]} if is_rotary else {}),
        ).last_hidden_state.squeeze(0)
        if self.head != "lm":
            return (self.get_submodule(HEAD_MODULES[self.head])(hidden[read]).squeeze(1),)
        if targets is None:
            return (self.lm_head(hidden),)
        return self._logprobs(hidden, targets, read)

    def _logprobs(self, hidden: Tensor, targets: Tensor, learned: Tensor) -> tuple[Tensor, Tensor]:
        """Compute log-probabilities `[T]` fp32 and hits `[T]`; zero where nothing is learned."""
        logprobs, is_most_likely = vocab_parallel_logprobs(
            self.lm_head(hidden[learned]),
            targets[learned].clamp(min=0),
            Softmax(self._alone, self.architecture.vocab_size),
        )
        is_learned = targets[learned] != IGNORE
        full = logprobs.new_zeros(targets.shape).index_put((learned,), logprobs * is_learned)
        hits = torch.zeros_like(targets, dtype=torch.bool)
        return full, hits.index_put((learned,), is_most_likely & is_learned)


def build(
    architecture: Model,
    head: Head,
    *,
    lora: Lora | None,
    recompute: str,
    alone: dist.ProcessGroup,
    dtype: torch.dtype,
    device: torch.device,
    partitioned: Callable[[], AbstractContextManager[Any]] | None = None,
) -> TransformersModel:
    """Build a model without spending time on random weights.

    Args:
        architecture: The model.
        head: What is on top.
        lora: Adapters, beside which only the head is trained; None where all weights are.
        recompute: `Parallel.recompute`.
        alone: A process group of this rank only.
        dtype: Of the weights.
        device: Where they are.
        partitioned: A context in which parameters are spread over the ranks when they are made;
            None where every rank holds all of them.
    """
    make = partial(
        TransformersModel, architecture, head, lora=lora, recompute=recompute, alone=alone
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        if partitioned is None:
            with no_init_weights(), device:
                return make()
        with no_init_weights(), partitioned():
            model = make()
    finally:
        torch.set_default_dtype(default)
    # The context rounds all that is computed in it to the weights' type, these frequencies too.
    layers: Any = model.get_submodule(model._prefix)
    if architecture.traits.is_rotary:
        layers.rotary_emb = type(layers.rotary_emb)(layers.config).to(device)
    return model


class _Attend:
    """Our attention, as the layers of one model call it.

    Attributes:
        pieces: Of the micro batch that is being computed, or computed again.
    """

    def __init__(self, *, is_recomputed: bool) -> None:
        self.pieces = Pieces((0,))
        self._is_recomputed = is_recomputed

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        dropout: float,
        alibi: Alibi | None = None,
    ) -> Tensor:
        """Attend as transformers has it: `[1, H, T, D]`, `[1, G, T, D]` twice -> `[1, T, H, D]`."""
        parts = [part.squeeze(0).transpose(0, 1) for part in (query, key, value)]
        run = partial(attend, pieces=self.pieces, dropout=dropout, alibi=alibi)
        if self._is_recomputed and query.requires_grad:
            return checkpoint(run, *parts, use_reentrant=False)[None]  # type: ignore[no-any-return]
        return run(*parts)[None]


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, _: Any, *, dropout: float, **__: Any
) -> tuple[Tensor, None]:
    """Attend between the projections of transformers' attention, which calls this."""
    return module.documents(query, key, value, dropout=dropout), None


class _BloomAttention(BloomAttention):
    """transformers' attention of Bloom between its projections has no place for another one."""

    documents: _Attend

    @override
    def forward(self, hidden_states: Tensor, residual: Tensor, **_: Any) -> tuple[Tensor, None]:
        """Attend: `[1, T, hidden]` twice -> `[1, T, hidden]`; documents give the positions."""
        context = self.documents(
            *self._reshape(self.query_key_value(hidden_states)),
            dropout=self.attention_dropout.p if self.training else 0.0,
            alibi=Alibi(self.num_heads),
        )
        output = self.dense(context.flatten(2))
        return dropout_add(output, residual, self.hidden_dropout, self.training), None


def _layers(architecture: Model, documents: _Attend) -> Any:
    """Build the model of transformers without a head, which attends as `documents` does."""
    family = FAMILIES[architecture.family]
    # Without a pad token: its embedding would not be trained.
    told = {"pad_token_id": None, "attention_dropout": architecture.attention_dropout}
    config = AutoConfig.for_model(**family.to_hf(architecture) | told)
    AttentionInterface.register(_ATTENTION, _attention)
    config._attn_implementation = _ATTENTION
    layers: Any = MODEL_MAPPING[type(config)](config)
    where = family.hf_module("decoder.layers.{layer}.self_attention.linear_proj")
    for number in range(architecture.num_layers):
        attention: Any = layers.get_submodule(where.format(layer=number).rpartition(".")[0])
        if isinstance(attention, BloomAttention):
            attention.__class__ = _BloomAttention  # the same parameters, another forward
        attention.documents = documents
    return layers
