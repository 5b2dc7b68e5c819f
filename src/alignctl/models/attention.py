"""Megatron's core attention, per document: how `document_attention` gets into its layers.

Notation used for tensor shapes:
    - T: tokens of a micro batch, documents laid end to end
    - H: attention heads of this tensor-parallel rank; G: its key-value heads
    - D: width of a head
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from alignctl.models.document_attention import Alibi, attend


@dataclass
class Documents(PackedSeqParams):
    """Megatron's description of packed sequences, with the boundaries as plain numbers.

    Reading them from `cu_seqlens_q` would wait for the GPU in every layer.
    """

    boundaries: tuple[int, ...] = ()

    @classmethod
    def at(cls, boundaries: tuple[int, ...], device: torch.device) -> "Documents":
        """Documents `[boundaries[i], boundaries[i+1])`; the first boundary is 0, the last T."""
        cu_seqlens = torch.tensor(boundaries, dtype=torch.int32, device=device)
        longest = max(end - start for start, end in pairwise(boundaries))
        return cls(
            qkv_format="thd",
            cu_seqlens_q=cu_seqlens,
            cu_seqlens_kv=cu_seqlens,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
            boundaries=boundaries,
        )


class DocumentAttention(MegatronModule):
    """Causal attention inside each document; a drop-in for Megatron's `core_attention`."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        *,
        alibi: bool = False,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        assert attn_mask_type == AttnMaskType.causal
        assert attention_type == "self"
        self.alibi = alibi

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
        """Attends; query `[T, H, D]`, key and value `[T, G, D]` -> `[T, H, D]`."""
        assert packed_seq_params is not None
        assert attention_bias is None
        rank, heads = parallel_state.get_tensor_model_parallel_rank(), query.shape[1]
        return attend(
            query,
            key,
            value,
            packed_seq_params.boundaries,
            dropout=self.config.attention_dropout if self.training else 0.0,
            alibi=Alibi(self.config.num_attention_heads, rank * heads) if self.alibi else None,
        )


class AlibiAttention(DocumentAttention):
    """`DocumentAttention` with Bloom's bias: Megatron's specs take a class, not its arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, alibi=True, **kwargs)
