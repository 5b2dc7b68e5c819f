"""Log-probabilities and entropy of the next token from logits cut along the vocabulary.

Notation used for tensor shapes:
    - N: positions; V: columns of this tensor-parallel rank
"""

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Softmax:
    """A softmax of z = logits / temperature over all ranks' columns.

    With M the largest z, S = sum exp(z - M) and W = sum (z - M) exp(z - M):
    log p = z - M - log S, and the entropy is log S - W / S.

    Attributes:
        group: The tensor-parallel group, in vocabulary order.
        vocab_size: Columns over all ranks that are tokens.
        temperature: What logits are divided by, above 0: that of the sampling whose probabilities
            these are.
        with_entropy: Whether the entropy is wanted too.
    """

    group: dist.ProcessGroup
    vocab_size: int
    temperature: float = 1.0
    with_entropy: bool = False

    def own(self, targets: Tensor, columns: int) -> tuple[int, Tensor, Tensor]:
        """Tell how many columns are tokens, each target's `[N]`, and whether it is here `[N]`."""
        first = dist.get_rank(self.group) * columns
        real = min(max(self.vocab_size - first, 0), columns)
        local = targets - first
        owned = (local >= 0) & (local < real)
        return real, local.clamp(0, max(real - 1, 0)), owned

    def compute(
        self, logits: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Compute log-probabilities, hits, entropies and log sum exp(z) `[N]` of logits `[N, V]`.

        By two all-reduces, of M `[N]` and of the sums `[2 or 3, N]` (S, the owner's z of the
        target, W).
        """
        real, local, owned = self.own(targets, logits.shape[1])
        dtype = _accumulator(logits)
        maximum = torch.full_like(targets, float("-inf"), dtype=dtype)
        for rows in _chunks(logits):
            if real:
                maximum[rows] = logits[rows, :real].amax(dim=1).to(dtype)
        dist.all_reduce(maximum, dist.ReduceOp.MAX, group=self.group)
        maximum /= self.temperature
        sums = maximum.new_zeros(3 if self.with_entropy else 2, len(targets))
        for rows in _chunks(logits):
            shifted = _shift(logits[rows, :real], maximum[rows], self.temperature)
            exponentials = shifted.exp() if self.with_entropy else shifted.exp_()
            sums[0, rows] = exponentials.sum(dim=1)
            if self.with_entropy:
                sums[2, rows] = exponentials.mul_(shifted.clamp_(min=_IMPOSSIBLE)).sum(dim=1)
        sums[1] = logits.gather(1, local[:, None])[:, 0].to(dtype).masked_fill(~owned, 0.0)
        sums[1] /= self.temperature
        dist.all_reduce(sums, group=self.group)

        total, chosen = sums[0], sums[1]
        normaliser = maximum + total.log()
        entropy = total.log() - sums[2] / total if self.with_entropy else None
        return chosen - normaliser, chosen >= maximum, entropy, normaliser

    def differentiate(
        self,
        logits: Tensor,
        targets: Tensor,
        normaliser: Tensor,
        entropy: Tensor | None,
        grads: tuple[Tensor | None, Tensor | None],
    ) -> Tensor:
        """Compute the gradient of the logits `[N, V]`, without a collective.

        It is (onehot(target) - p) g - p (log p + entropy) h, over temperature. p is computed again,
        chunk by chunk.

        Args:
            logits: As `compute` was given them, like the targets.
            targets: Token ids `[N]`.
            normaliser: What it found, like the entropy.
            entropy: Of each position `[N]`, where h is given.
            grads: g of the log-probabilities and h of the entropies, `[N]` each; None for zeros.
        """
        real, local, owned = self.own(targets, logits.shape[1])
        of_logprobs = torch.zeros_like(normaliser) if grads[0] is None else grads[0]
        of_logprobs = of_logprobs.to(normaliser.dtype) / self.temperature
        of_entropy = None if grads[1] is None else grads[1] / self.temperature
        grad_logits = torch.zeros_like(logits)
        for rows in _chunks(logits) if real else []:
            slope = of_logprobs[rows, None]
            logprobs = _shift(logits[rows, :real], normaliser[rows], self.temperature)
            if of_entropy is None or entropy is None:
                grad = logprobs.exp_().mul_(-slope)
            else:
                grad = logprobs.exp()
                logprobs.clamp_(min=_IMPOSSIBLE).add_(entropy[rows, None])
                grad.mul_(logprobs.mul_(of_entropy[rows, None]).add_(slope).neg_())
            # Added before rounding: 1 - p is small where the model is sure of the target.
            grad.scatter_add_(1, local[rows, None], slope * owned[rows, None])
            grad_logits[rows, :real] = grad.to(logits.dtype)
        return grad_logits


class _VocabParallel(torch.autograd.Function):
    """What `Softmax` computes of logits, which are kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, softmax: Softmax
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        logprobs, is_most_likely, entropy, normaliser = softmax.compute(logits, targets)
        ctx.save_for_backward(logits, targets, normaliser, entropy)
        ctx.softmax = softmax
        ctx.mark_non_differentiable(is_most_likely)
        ctx.set_materialize_grads(False)
        return logprobs, is_most_likely, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return ctx.softmax.differentiate(*ctx.saved_tensors, (grads[0], grads[2])), None, None


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
    logits: Tensor, targets: Tensor, softmax: Softmax
) -> tuple[Tensor, ...]:
    """Compute the log-probability of each target, and whether it was the most likely token.

    Args:
        logits: This rank's columns `[N, V]`, any float dtype. The last ranks may hold padding,
            which gets neither probability nor gradient.
        targets: Token ids `[N]`, int64, all tokens of the vocabulary.
        softmax: Of the logits.

    Returns:
        Log-probabilities `[N]` (natural log, fp32; fp64 for fp64 logits) and booleans `[N]`; where
        it is wanted, the entropy of each position `[N]` in nats too, differentiable and in the
        dtype of the log-probabilities. Equal on every rank.
    """
    apply: Any = _VocabParallel.apply
    logprobs, is_most_likely, entropy = apply(logits, targets, softmax)
    return (logprobs, is_most_likely) if entropy is None else (logprobs, is_most_likely, entropy)
