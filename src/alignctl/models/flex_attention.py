"""Attention by torch's FlexAttention: documents, what they share, ALiBi and grouped queries.

One kernel computes all documents of a micro batch. Which keys a query sees is said twice: exactly,
token by token, by a function that is compiled into the kernel; and by blocks of tokens, of which
those that nothing is seen in are left out. Both follow from `Pieces` alone, on the host.

Notation used for tensor shapes:
    - T: tokens of a micro batch, a multiple of `BLOCK`; documents laid end to end
    - R: blocks of the micro batch, T / BLOCK
    - H: attention heads; G: their key-value heads; D: width of a head
"""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from alignctl.data.batch import Pieces
from alignctl.models.document_attention import Alibi, alibi_slopes

BLOCK = 128
"""Tokens of a block: FlexAttention's own default, which its kernels are tuned for.

Micro batches are filled up to a multiple of it, so that every block is whole.
"""

_MOST_KERNELS = 64
"""Kernels that may be compiled in one process: see `_compiled`."""


class FlexMask(NamedTuple):
    """Who sees whom in a micro batch; one serves all layers.

    Attributes:
        blocks: The same for FlexAttention.
        orders: Of each token its number in preorder, the one behind its run, and its position in
            its documents `[3, T]`, int32: see `_preorder`.
    """

    blocks: BlockMask
    orders: Tensor

    @classmethod
    def of(
        cls,
        pieces: Pieces,
        to_device: Callable[[NDArray[np.generic]], Tensor],
        block: int = BLOCK,
    ) -> "FlexMask":
        """Describe who sees whom in these pieces, of T tokens, without asking the device anything.

        Args:
            pieces: Where documents are.
            to_device: Copies an array to where the model is.
            block: Tokens of a block, which divides T.
        """
        total = pieces.boundaries[-1]
        assert total % block == 0
        first, last = _preorder(pieces)
        own = np.arange(total) - np.repeat(pieces.boundaries[:-1], pieces.lengths)
        number, end = (np.repeat(each, pieces.lengths) for each in (first, last))
        orders = to_device(np.stack([number + own, end, pieces.positions]).astype(np.int32))

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            number = orders[0, query]
            return (orders[0, key] <= number) & (number < orders[1, key])

        some, every = seen_blocks(pieces, block)
        (counts, indices), (full_counts, full_indices) = _ordered(some & ~every), _ordered(every)
        blocks = BlockMask.from_kv_blocks(
            to_device(counts),
            to_device(indices),
            to_device(full_counts),
            to_device(full_indices),
            BLOCK_SIZE=block,
            mask_mod=sees,
            seq_lengths=(total, total),
        )
        return cls(blocks, orders)


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: FlexMask, *, alibi: Alibi | None = None
) -> Tensor:
    """Compute what `document_attention.attend` does, in one kernel; nothing is dropped out.

    Args:
        query: `[T, H, D]`.
        key: `[T, G, D]`.
        value: `[T, G, D]`.
        mask: Who sees whom.
        alibi: Adds slope * (key position - query position) to the scores.

    Returns:
        `[T, H, D]`.
    """
    kernel: Any = _compiled() if query.is_cuda else flex_attention
    output: Tensor = kernel(
        *(part.transpose(0, 1)[None] for part in (query, key, value)),
        score_mod=None if alibi is None else _biased(alibi, query, mask.orders),
        block_mask=mask.blocks,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.squeeze(0).transpose(0, 1).contiguous()


@cache
def _compiled() -> Callable[..., Any]:
    """Compile FlexAttention: uncompiled it makes all T x T scores.

    The first micro batch is compiled for its T; the second T makes one kernel more, for all
    multiples of `BLOCK`. So there are two for each kind of heads, type, and of pass, with and
    without gradients: of a run's policy, reward and value models more than the 8 after which torch
    would go on uncompiled, in silence but for a warning. `fullgraph` makes that an error.
    """
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _MOST_KERNELS)
    return torch.compile(flex_attention, fullgraph=True)


def _biased(alibi: Alibi, query: Tensor, orders: Tensor) -> Callable[..., Tensor]:
    """Make the function that adds ALiBi's bias to a score."""
    slopes = _slopes(alibi, query.shape[1], query.device)

    def biased(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + slopes[head] * (orders[2, key] - orders[2, query])

    return biased


@lru_cache(maxsize=16)
def _slopes(alibi: Alibi, heads: int, device: torch.device) -> Tensor:
    """Compute the slopes of the heads at hand `[heads]`, for all layers and micro batches."""
    return alibi_slopes(alibi.num_heads)[alibi.first : alibi.first + heads].to(
        device, non_blocking=True
    )


# ---- from pieces to who sees whom ----


def _preorder(pieces: Pieces) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count tokens in an order in which whatever continues a piece stands right behind it.

    A token then sees those before it whose runs it is in: of its own piece and of what that
    continues, to any depth.

    Returns:
        Of each piece, the number of its first token, and the one behind all that continues it.
    """
    count = len(pieces.lengths)
    parents = pieces.parents or (-1,) * count
    sizes = np.array([*pieces.lengths, 0], np.int64)  # the last one is whatever continues nothing
    for piece in reversed(range(count)):
        sizes[parents[piece]] += sizes[piece]
    first = np.zeros(count, np.int64)
    following = np.zeros(count + 1, np.int64)
    for piece, parent in enumerate(parents):
        first[piece] = following[parent]
        following[parent] += sizes[piece]
        following[piece] = first[piece] + pieces.lengths[piece]
    return first, first + sizes[:-1]


def seen_blocks(pieces: Pieces, block: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Tell which blocks of keys a block of queries sees.

    Returns:
        Whether any of its queries sees any key, and whether all of them see all: `[R, R]` twice.
    """
    total = pieces.boundaries[-1]
    first, last = _preorder(pieces)
    # Between two cuts all tokens are of one piece and of one block.
    cuts = np.union1d(pieces.boundaries, np.arange(0, total, block))
    starts, ends = cuts[:-1], cuts[1:]
    piece = np.searchsorted(pieces.boundaries, starts, side="right") - 1
    first, last = first[piece], last[piece]
    continues = (first[None] < first[:, None]) & (first[:, None] < last[None])
    is_same = piece[:, None] == piece[None]
    some = continues | (is_same & (ends[:, None] > starts[None]))
    every = continues | (is_same & (starts[:, None] >= ends[None] - 1))
    heads = np.searchsorted(starts, np.arange(0, total, block))
    some = np.logical_or.reduceat(np.logical_or.reduceat(some, heads, axis=0), heads, axis=1)
    every = np.logical_and.reduceat(np.logical_and.reduceat(every, heads, axis=0), heads, axis=1)
    return some, every


def _ordered(blocks: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """List the blocks that are True as FlexAttention has it: counts `[1, 1, R]`, `[1, 1, R, R]`."""
    counts = blocks.sum(axis=1, dtype=np.int32)
    indices = np.argsort(~blocks, axis=1, kind="stable").astype(np.int32)
    return counts.reshape(1, 1, -1), indices.reshape(1, 1, *indices.shape)
