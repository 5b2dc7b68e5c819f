"""Attention on `scaled_dot_product_attention`: causal, per document, with ALiBi for Bloom.

Notation used for tensor shapes:
    - T: tokens of a micro batch, documents laid end to end
    - H: attention heads; G: their key-value heads
    - D: width of a head
"""

import math
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class Alibi(NamedTuple):
    """Which heads attend, as ALiBi's slopes need to know.

    Attributes:
        num_heads: Heads of the layer, over all tensor-parallel ranks.
        first: The first of those at hand.
    """

    num_heads: int
    first: int = 0


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    boundaries: tuple[int, ...],
    *,
    dropout: float = 0.0,
    alibi: Alibi | None = None,
) -> Tensor:
    """Causal attention inside each document: they do not see each other, nothing is padded.

    Args:
        query: `[T, H, D]`.
        key: `[T, G, D]`.
        value: `[T, G, D]`.
        boundaries: Documents `[boundaries[i], boundaries[i+1])`; starts with 0, ends with T.
        dropout: Probability of dropping an attention weight.
        alibi: Adds slope * (key position - query position) to the scores, which softmax cannot
            tell from Hugging Face's slope * key position.

    Returns:
        `[T, H, D]`.
    """
    if (repeats := query.shape[1] // key.shape[1]) > 1:
        key = key.repeat_interleave(repeats, dim=1)
        value = value.repeat_interleave(repeats, dim=1)
    lengths = [end - start for start, end in pairwise(boundaries)]
    outputs = [
        _attend(
            *(part.transpose(0, 1) for part in document), dropout=dropout, alibi=alibi
        ).transpose(0, 1)
        for document in zip(
            query.split(lengths), key.split(lengths), value.split(lengths), strict=True
        )
    ]
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0].contiguous()


def _attend(
    query: Tensor, key: Tensor, value: Tensor, *, dropout: float, alibi: Alibi | None
) -> Tensor:
    """One document: `[H, L, D]` each -> `[H, L, D]`."""
    # A leading batch dimension of one, of the bias too, keeps torch on its fused kernels.
    bias = None if alibi is None else _bias_of(query, alibi)[None]
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


def alibi_slopes(num_heads: int) -> Tensor:
    """Slope of each head `[num_heads]`, fp32 (Press et al., arXiv 2108.12409, section 3).

    For a power of two n, head i (from 1) has 2^(-8i/n). Otherwise the first heads take the slopes
    of the power of two below, the rest every second slope of the power of two above.
    """
    below = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * i / below) for i in range(1, below + 1)]
    slopes += [2.0 ** (-4.0 * i / below) for i in range(1, 2 * (num_heads - below), 2)]
    return torch.tensor(slopes, dtype=torch.float32)


def _bias_of(query: Tensor, alibi: Alibi) -> Tensor:
    """The bias of one document `[H, L, L]`, for a query `[H, L, D]`."""
    heads, length = query.shape[:2]
    # A power of two serves documents of many lengths; only differences of positions count.
    bias = _alibi_bias(
        alibi.num_heads,
        alibi.first,
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


def forget_biases() -> None:
    """Gives the memory of the biases back."""
    _alibi_bias.cache_clear()
