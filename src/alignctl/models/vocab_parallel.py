"""Log-probabilities of the next token from logits cut along the vocabulary.

Notation used for tensor shapes:
    - N: positions; V: columns of this tensor-parallel rank
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

CHUNK_ELEMENTS = 1 << 22
"""Logits that are turned into fp32 at a time: 16 MiB on top of the logits' own. Few enough for a
CPU's cache, where larger chunks took twice as long, and enough to keep a GPU busy."""


class _VocabParallelLogprobs(torch.autograd.Function):
    """log softmax(logits)[target], the softmax running over all ranks' columns.

    Forward: three all-reduces of [N] (maximum, sum of exponentials, the owner's target logit).
    Backward: (onehot(target) - softmax) times the incoming gradient, on the local columns only.
    The logits are kept and the softmax is computed again, chunk by chunk.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, group: dist.ProcessGroup, vocab_size: int
    ) -> tuple[Tensor, Tensor]:
        rank, columns = dist.get_rank(group), logits.shape[1]
        first = rank * columns
        real = min(max(vocab_size - first, 0), columns)
        local = targets - first
        owned = (local >= 0) & (local < real)
        local = local.clamp(0, max(real - 1, 0))

        dtype = _accumulator(logits)
        maximum = torch.full_like(targets, float("-inf"), dtype=dtype)
        for rows in _chunks(logits):
            if real:
                maximum[rows] = logits[rows, :real].amax(dim=1).to(dtype)
        dist.all_reduce(maximum, dist.ReduceOp.MAX, group=group)
        total = torch.zeros_like(maximum)
        for rows in _chunks(logits):
            shifted = logits[rows, :real].to(dtype) - maximum[rows, None]
            total[rows] = shifted.exp_().sum(dim=1)
        dist.all_reduce(total, group=group)
        chosen = logits.gather(1, local[:, None])[:, 0].to(dtype).masked_fill(~owned, 0.0)
        dist.all_reduce(chosen, group=group)

        log_normaliser = maximum + total.log()
        ctx.save_for_backward(logits, local, owned, log_normaliser)
        ctx.real = real
        is_most_likely = chosen >= maximum
        ctx.mark_non_differentiable(is_most_likely)
        return chosen - log_normaliser, is_most_likely

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        logits, local, owned, log_normaliser = ctx.saved_tensors
        grad = grads[0].to(log_normaliser.dtype)
        grad_logits = torch.zeros_like(logits)
        for rows in _chunks(logits) if ctx.real else []:
            grad_rows = grad[rows, None]
            softmax = (logits[rows, : ctx.real].to(grad.dtype) - log_normaliser[rows, None]).exp_()
            # Added before rounding: 1 - softmax is small where the model is sure of the target.
            softmax.mul_(-grad_rows).scatter_add_(
                1, local[rows, None], grad_rows * owned[rows, None]
            )
            grad_logits[rows, : ctx.real] = softmax.to(logits.dtype)
        return grad_logits, None, None, None


def _accumulator(logits: Tensor) -> torch.dtype:
    """fp32, or fp64 for fp64 logits, so that the gradient can be checked by finite differences."""
    return torch.promote_types(logits.dtype, torch.float32)


def _chunks(logits: Tensor) -> list[slice]:
    """Row ranges of at most `CHUNK_ELEMENTS` logits."""
    step = max(1, CHUNK_ELEMENTS // max(1, logits.shape[1]))
    return [slice(start, start + step) for start in range(0, logits.shape[0], step)]


def vocab_parallel_logprobs(
    logits: Tensor, targets: Tensor, *, group: dist.ProcessGroup, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and whether it was the most likely token.

    Args:
        logits: This rank's columns `[N, V]`, any float dtype. The last ranks may hold padding.
        targets: Token ids `[N]`, int64, all below `vocab_size`.
        group: The tensor-parallel group, in vocabulary order.
        vocab_size: Columns over all ranks that are tokens; those behind are padding and get
            neither probability nor gradient.

    Returns:
        Log-probabilities `[N]` (natural log, fp32; fp64 for fp64 logits) and booleans `[N]`.
        Equal on every rank.
    """
    apply: Any = _VocabParallelLogprobs.apply
    logprobs, is_most_likely = apply(logits, targets, group, vocab_size)
    return logprobs, is_most_likely
