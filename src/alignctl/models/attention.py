"""Core attention on `scaled_dot_product_attention`: causal, per document, with ALiBi for Bloom.

Notation used for tensor shapes:
    - T: tokens of a micro batch, documents laid end to end
    - H: attention heads of this tensor-parallel rank; G: its key-value heads
    - D: width of a head
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


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


def alibi_slopes(num_heads: int) -> Tensor:
    """Slope of each head `[num_heads]`, fp32 (Press et al., arXiv 2108.12409, section 3).

    For a power of two n, head i (from 1) has 2^(-8i/n). Otherwise the first heads take the slopes
    of the power of two below, the rest every second slope of the power of two above.
    """
    below = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * i / below) for i in range(1, below + 1)]
    slopes += [2.0 ** (-4.0 * i / below) for i in range(1, 2 * (num_heads - below), 2)]
    return torch.tensor(slopes, dtype=torch.float32)


class DocumentAttention(MegatronModule):
    """Causal attention inside each document; a drop-in for Megatron's `core_attention`.

    Documents do not see each other, and no padding is computed. `alibi` adds
    slope * (key position - query position) to the scores, which softmax cannot tell from
    Hugging Face's slope * key position.
    """

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
        if (repeats := query.shape[1] // key.shape[1]) > 1:
            key = key.repeat_interleave(repeats, dim=1)
            value = value.repeat_interleave(repeats, dim=1)
        lengths = [end - start for start, end in pairwise(packed_seq_params.boundaries)]
        outputs = [
            self._attend(q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)).transpose(0, 1)
            for q, k, v in zip(
                query.split(lengths), key.split(lengths), value.split(lengths), strict=True
            )
        ]
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0].contiguous()

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One document: `[H, L, D]` each -> `[H, L, D]`."""
        dropout = self.config.attention_dropout if self.training else 0.0
        bias = self._alibi_bias(query) if self.alibi else None
        # A leading batch dimension of one keeps torch on its fused kernels.
        output = scaled_dot_product_attention(
            query[None],
            key[None],
            value[None],
            attn_mask=bias,
            dropout_p=dropout,
            is_causal=bias is None,
        )
        # Not output[0]: the gradient of an index is a tensor of zeros, written into.
        return output.squeeze(0)

    def _alibi_bias(self, query: Tensor) -> Tensor:
        """The bias of one document `[H, L, L]`, for the heads of this tensor-parallel rank."""
        heads, length = query.shape[:2]
        # A power of two serves documents of many lengths; only differences of positions count.
        bias = _alibi_bias(
            self.config.num_attention_heads,
            parallel_state.get_tensor_model_parallel_rank() * heads,
            heads,
            1 << (length - 1).bit_length(),
            query.dtype,
            query.device,
        )
        return bias[:, :length, :length]


@lru_cache(maxsize=16)
def _alibi_bias(
    num_heads: int, first: int, heads: int, length: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Bias `[heads, length, length]` of heads from `first` on; one tensor serves all layers.

    The shorter lengths together take a third of the longest one's memory.
    """
    slopes = alibi_slopes(num_heads)[first : first + heads].to(device)
    positions = torch.arange(length, device=device)
    distance = positions[None, :] - positions[:, None]
    bias = slopes[:, None, None] * distance
    return bias.masked_fill(distance > 0, float("-inf")).to(dtype)


class AlibiAttention(DocumentAttention):
    """`DocumentAttention` with Bloom's bias: Megatron's specs take a class, not its arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, alibi=True, **kwargs)
