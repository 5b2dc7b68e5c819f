"""Log-probabilities and entropy of the next token from logits cut along the vocabulary.

Notation used for tensor shapes:
    - N: positions; V: columns of this tensor-parallel rank
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

CHUNK_ELEMENTS = 1 << 22
"""Logits that are turned into fp32 at a time: 16 MiB on top of the logits' own, 32 with entropy.
Few enough for a CPU's cache, where larger chunks took twice as long, and enough to keep a GPU
busy."""

_IMPOSSIBLE = -1e4
"""Takes the place of a log-probability of -inf in p log p, which would be 0 times infinity: the
exponential of both is 0."""


class _VocabParallel(torch.autograd.Function):
    """log softmax(z)[target] and the entropy of softmax(z), z = logits / temperature.

    The softmax runs over all ranks' columns. With M the largest z, S = sum exp(z - M) and
    W = sum (z - M) exp(z - M): log p = z - M - log S, and the entropy is log S - W / S.

    Forward: two all-reduces, of M `[N]` and of the sums `[2 or 3, N]` (S, the owner's z of the
    target, W).
    Backward, on the local columns only: (onehot(target) - p) g - p (log p + entropy) h, over
    temperature, for the incoming gradients g and h. The logits are kept and p is computed again,
    chunk by chunk.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        group: dist.ProcessGroup,
        vocab_size: int,
        temperature: float,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
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
        maximum /= temperature
        sums = maximum.new_zeros(3 if with_entropy else 2, len(targets))
        for rows in _chunks(logits):
            shifted = _shift(logits[rows, :real], maximum[rows], temperature)
            exponentials = shifted.exp() if with_entropy else shifted.exp_()
            sums[0, rows] = exponentials.sum(dim=1)
            if with_entropy:
                sums[2, rows] = exponentials.mul_(shifted.clamp_(min=_IMPOSSIBLE)).sum(dim=1)
        sums[1] = logits.gather(1, local[:, None])[:, 0].to(dtype).masked_fill(~owned, 0.0)
        sums[1] /= temperature
        dist.all_reduce(sums, group=group)

        total, chosen = sums[0], sums[1]
        log_normaliser = maximum + total.log()
        entropy = total.log() - sums[2] / total if with_entropy else None
        ctx.save_for_backward(logits, local, owned, log_normaliser, entropy)
        ctx.real, ctx.temperature = real, temperature
        is_most_likely = chosen >= maximum
        ctx.mark_non_differentiable(is_most_likely)
        ctx.set_materialize_grads(False)
        return chosen - log_normaliser, is_most_likely, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, local, owned, log_normaliser, entropy = ctx.saved_tensors
        of_logprobs = torch.zeros_like(log_normaliser) if grads[0] is None else grads[0]
        of_logprobs = of_logprobs.to(log_normaliser.dtype) / ctx.temperature
        of_entropy = None if grads[2] is None else grads[2] / ctx.temperature
        grad_logits = torch.zeros_like(logits)
        for rows in _chunks(logits) if ctx.real else []:
            slope = of_logprobs[rows, None]
            local_logits = logits[rows, : ctx.real]
            logprobs = _shift(local_logits, log_normaliser[rows], ctx.temperature)
            if of_entropy is None:
                grad = logprobs.exp_().mul_(-slope)
            else:
                grad = logprobs.exp()
                logprobs.clamp_(min=_IMPOSSIBLE).add_(entropy[rows, None])
                grad.mul_(logprobs.mul_(of_entropy[rows, None]).add_(slope).neg_())
            # Added before rounding: 1 - p is small where the model is sure of the target.
            grad.scatter_add_(1, local[rows, None], slope * owned[rows, None])
            grad_logits[rows, : ctx.real] = grad.to(logits.dtype)
        return grad_logits, None, None, None, None, None


def _accumulator(logits: Tensor) -> torch.dtype:
    """Return fp32, or fp64 for fp64 logits: then finite differences can check the gradient."""
    return torch.promote_types(logits.dtype, torch.float32)


def _shift(logits: Tensor, by: Tensor, temperature: float) -> Tensor:
    """Compute logits / temperature - by `[rows, columns]` in the dtype of `by` `[rows]`; a copy."""
    scaled = logits.to(by.dtype)
    if temperature != 1:
        scaled = scaled / temperature
    return scaled - by[:, None]


def _chunks(logits: Tensor) -> list[slice]:
    """List row ranges of at most `CHUNK_ELEMENTS` logits."""
    step = max(1, CHUNK_ELEMENTS // max(1, logits.shape[1]))
    return [slice(start, start + step) for start in range(0, logits.shape[0], step)]


def vocab_parallel_logprobs(
    logits: Tensor,
    targets: Tensor,
    *,
    group: dist.ProcessGroup,
    vocab_size: int,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Compute the log-probability of each target, and whether it was the most likely token.

    Args:
        logits: This rank's columns `[N, V]`, any float dtype. The last ranks may hold padding.
        targets: Token ids `[N]`, int64, all below `vocab_size`.
        group: The tensor-parallel group, in vocabulary order.
        vocab_size: Columns over all ranks that are tokens; those behind are padding and get
            neither probability nor gradient.
        temperature: What the logits are divided by, above 0: that of the sampling whose
            probabilities these are.

    Returns:
        Log-probabilities `[N]` (natural log, fp32; fp64 for fp64 logits) and booleans `[N]`.
        Equal on every rank.
    """
    apply: Any = _VocabParallel.apply
    logprobs, is_most_likely, _ = apply(logits, targets, group, vocab_size, temperature, False)
    return logprobs, is_most_likely


def vocab_parallel_logprobs_and_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    group: dist.ProcessGroup,
    vocab_size: int,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Do as `vocab_parallel_logprobs`, and compute the entropy of each position too.

    Returns:
        Log-probabilities `[N]`, booleans `[N]`, and entropies `[N]` in nats, differentiable and in
        the dtype of the log-probabilities.
    """
    apply: Any = _VocabParallel.apply
    logprobs, is_most_likely, entropy = apply(logits, targets, group, vocab_size, temperature, True)
    return logprobs, is_most_likely, entropy
