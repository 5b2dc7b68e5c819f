"""Attention on `scaled_dot_product_attention`: causal, per document, with ALiBi for Bloom.

Notation used for tensor shapes:
    - T: tokens of a micro batch, documents laid end to end
    - H: attention heads; G: their key-value heads
    - D: width of a head
    - L: tokens of a piece of a document; S: of all that these attend to
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from alignctl.data.batch import Pieces


class Alibi(NamedTuple):
    """Heads that attend, as ALiBi's slopes need to know.

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
    pieces: Pieces,
    *,
    dropout: float = 0.0,
    alibi: Alibi | None = None,
) -> Tensor:
    """Compute causal attention inside each document: they do not see each other; no padding.

    A piece that several documents begin with attends once, to itself; what continues it, to it and
    to itself. Nothing is computed between those that continue the same piece.

    Args:
        query: `[T, H, D]`.
        key: `[T, G, D]`.
        value: `[T, G, D]`.
        pieces: Where documents are.
        dropout: Probability of dropping an attention weight.
        alibi: Adds slope * (key position - query position) to the scores, which softmax cannot
            tell from Hugging Face's slope * key position.

    Returns:
        `[T, H, D]`.
    """
    if (repeats := query.shape[1] // key.shape[1]) > 1:
        key = key.repeat_interleave(repeats, dim=1)
        value = value.repeat_interleave(repeats, dim=1)
    queries, keys, values = (part.split(pieces.lengths) for part in (query, key, value))
    outputs = [
        _attend(
            queries[chain[-1]].transpose(0, 1),
            _joined(keys, chain).transpose(0, 1),
            _joined(values, chain).transpose(0, 1),
            dropout=dropout,
            alibi=alibi,
        ).transpose(0, 1)
        for chain in pieces.chains
    ]
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0].contiguous()


def _joined(parts: Sequence[Tensor], chain: Sequence[int]) -> Tensor:
    return torch.cat([parts[piece] for piece in chain]) if len(chain) > 1 else parts[chain[0]]


def _attend(
    query: Tensor, key: Tensor, value: Tensor, *, dropout: float, alibi: Alibi | None
) -> Tensor:
    """Attend from a document's end to all of it: `[H, L, D]`, `[H, S, D]` twice -> `[H, L, D]`."""
    is_whole = query.shape[1] == key.shape[1]
    # A leading batch dimension of one, of the bias too, keeps torch on its fused kernels.
    bias = None if alibi is None and is_whole else _bias_of(query, key, alibi)[None]
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
    """Compute each head's slope `[num_heads]`, fp32 (Press et al., arXiv 2108.12409, section 3).

    For a power of two n, head i (from 1) has 2^(-8i/n). Otherwise the first heads take the slopes
    of the power of two below, the rest every second slope of the power of two above.
    """
    below = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * i / below) for i in range(1, below + 1)]
    slopes += [2.0 ** (-4.0 * i / below) for i in range(1, 2 * (num_heads - below), 2)]
    return torch.tensor(slopes, dtype=torch.float32)


def _bias_of(query: Tensor, key: Tensor, alibi: Alibi | None) -> Tensor:
    """Build what is added to the scores `[H or 1, L, S]`: -inf where a key comes after a query."""
    length, total = query.shape[1], key.shape[1]
    # A power of two serves documents of many lengths; only differences of positions count.
    side = 1 << (total - 1).bit_length()
    if alibi is None:
        bias = _causal_bias(side, query.dtype, query.device)
    else:
        heads = query.shape[0]
        bias = _alibi_bias(alibi.num_heads, alibi.first, heads, side, query.dtype, query.device)
    return bias[:, total - length : total, :total]


@lru_cache(maxsize=16)
def _causal_bias(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Build the causal bias `[1, length, length]`; one tensor serves all layers."""
    positions = torch.arange(length, device=device)
    bias = torch.zeros(1, length, length, dtype=dtype, device=device)
    return bias.masked_fill(positions[None, :] > positions[:, None], float("-inf"))


@lru_cache(maxsize=16)
def _alibi_bias(
    num_heads: int, first: int, heads: int, length: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Build the bias `[heads, length, length]` of heads from `first` on, for all layers.

    The shorter lengths together take a third of the longest one's memory.
    """
    slopes = alibi_slopes(num_heads)[first : first + heads].to(device)
    positions = torch.arange(length, device=device)
    distance = positions[None, :] - positions[:, None]
    bias = slopes[:, None, None] * distance
    return bias.masked_fill(distance > 0, float("-inf")).to(dtype)


def forget_biases() -> None:
    """Give the memory of the biases back."""
    _alibi_bias.cache_clear()
    _causal_bias.cache_clear()
