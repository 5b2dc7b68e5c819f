"""Megatron's core attention, per document: how ours gets into its layers.

Notation used for tensor shapes:
    - T: tokens of a micro batch, documents laid end to end
    - H: attention heads of this tensor-parallel rank; G: its key-value heads
    - D: width of a head
"""

import importlib.util
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from numpy.typing import NDArray
from torch import Tensor

from alignctl.config.kernels import Attention, Kernels
from alignctl.config.sections import Model
from alignctl.data.batch import Pieces
from alignctl.errors import UserError
from alignctl.models import document_attention, flex_attention
from alignctl.models.document_attention import Alibi
from alignctl.models.flex_attention import FlexMask


def choose_attention(model: Model, kernels: Kernels) -> Attention:
    """Choose what computes a model's attention on this machine.

    Raises:
        UserError: It is to be Transformer Engine's, and there is no GPU for it.
    """
    is_gpu = torch.cuda.is_available()
    chosen = kernels.choose(
        model,
        is_gpu=is_gpu,
        has_transformer_engine=importlib.util.find_spec("transformer_engine") is not None,
    )
    if chosen == "transformer_engine" and not is_gpu:
        raise UserError(
            "kernels.attention transformer_engine: it computes on a GPU alone, and none can be "
            "seen here",
            "leave it out, or set it to auto",
        )
    return chosen


@dataclass(kw_only=True)
class Documents(PackedSeqParams):
    """Megatron's description of packed sequences, with the documents as plain numbers.

    Reading them from `cu_seqlens_q` would wait for the GPU, which Megatron's rotation of queries
    and keys does several times in every layer: so it is left out, and each token's angle is handed
    to it, by its position.

    Attributes:
        pieces: Where documents are.
        boundaries: Where pieces begin, and the end of the last one, int32.
        ends: Place of each document's last token `[D]`, int64.
        positions: Of each token in its documents `[T]`, int64.
        learned: Positions whose target is learned `[N]`, int64; one at least. Finding them on the
            GPU would wait for it.
        mask: Who sees whom, for FlexAttention; None where documents attend one after the other.
    """

    pieces: Pieces
    boundaries: Tensor
    ends: Tensor
    positions: Tensor
    learned: Tensor
    mask: FlexMask | None

    @classmethod
    def at(
        cls,
        pieces: Pieces,
        is_learned: NDArray[np.bool_],
        to_device: Callable[[NDArray[np.generic]], Tensor],
        *,
        is_flex: bool = False,
    ) -> "Documents":
        """Describe the documents that are made of these pieces.

        Args:
            pieces: Where documents are.
            is_learned: Whether the target of each position is learned `[T]`. Where none is, there
                is one position with a gradient of zero: ranks take part in collectives evenly.
            to_device: Copies an array to where the model is.
            is_flex: Whether FlexAttention computes them; the pieces fill whole blocks then.
        """
        longest = max(pieces.document_lengths)
        learned = np.flatnonzero(is_learned)
        return cls(
            qkv_format="thd",
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
            pieces=pieces,
            boundaries=to_device(np.array(pieces.boundaries, np.int32)),
            ends=to_device(np.array(pieces.ends, np.int64)),
            positions=to_device(pieces.positions),
            learned=to_device(learned if learned.size else np.zeros(1, np.int64)),
            mask=FlexMask.of(pieces, to_device) if is_flex else None,
        )

    def with_boundaries(self) -> "Documents":
        """Describe the same to a kernel that reads boundaries on the GPU; no document shares."""
        assert not self.pieces.parents
        packed = copy(self)
        packed.cu_seqlens_q = packed.cu_seqlens_kv = self.boundaries
        return packed


class DocumentAttention(MegatronModule):
    """Causal attention inside each document; a drop-in for Megatron's `core_attention`."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        *,
        pg_collection: ProcessGroupCollection,
        alibi: bool = False,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        assert attn_mask_type == AttnMaskType.causal
        assert attention_type == "self"
        self.alibi, self.tp_group = alibi, pg_collection.tp

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Documents | None = None,
    ) -> Tensor:
        """Attend; query `[T, H, D]`, key and value `[T, G, D]` -> `[T, H, D]`."""
        assert packed_seq_params is not None
        assert attention_bias is None
        rank, heads = self.tp_group.rank(), query.shape[1]
        alibi = Alibi(self.config.num_attention_heads, rank * heads) if self.alibi else None
        return attend_documents(self, query, key, value, packed_seq_params, alibi=alibi)


def attend_documents(
    layer: MegatronModule,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: Documents,
    *,
    alibi: Alibi | None = None,
) -> Tensor:
    """Attend in a layer, with its dropout; query `[T, H, D]`, the others `[T, G, D]`."""
    dropout = layer.config.attention_dropout if layer.training else 0.0
    if documents.mask is None:
        pieces = documents.pieces
        return document_attention.attend(query, key, value, pieces, dropout=dropout, alibi=alibi)
    assert not dropout
    return flex_attention.attend(query, key, value, documents.mask, alibi=alibi)


class AlibiAttention(DocumentAttention):
    """`DocumentAttention` with Bloom's bias: Megatron's specs take a class, not its arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, alibi=True, **kwargs)
