"""Log-probabilities from hidden states, by logits of which a chunk exists at a time.

Notation used for tensor shapes:
    - N: positions; H: width; V: columns of this tensor-parallel rank; C: positions of a chunk

Not a checkpoint of torch's around each chunk: that would take part in its collectives again, and
add up the chunks' gradients of the output layer in the precision of the weights.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from alignctl.models.vocab_parallel import Softmax


class _ChunkedLogprobs(torch.autograd.Function):
    """What `Softmax` computes of project(hidden); the backward pass computes logits again.

    Forward: `[C, V]` at a time, which is dropped. Backward, likewise: the gradient of a chunk's
    logits gives that of its hidden states, which is summed over ranks once for all chunks, and a
    part of the weight's. Parts are added to Megatron's float32 `main_grad`, as Megatron itself
    would add their sum; only the last one goes through autograd, whose hooks then see one gradient
    of this weight, to which that of a tied embedding is added.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        project: Callable[[Tensor], Tensor],
        targets: Tensor,
        softmax: Softmax,
        size: int,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        found = [
            softmax.compute(project(rows), of_rows)
            for rows, of_rows in zip(hidden.split(size), targets.split(size), strict=True)
        ]
        logprobs, hits, entropies, normalisers = zip(*found, strict=True)
        entropy = torch.cat(entropies) if softmax.with_entropy else None
        is_most_likely = torch.cat(hits)
        ctx.save_for_backward(hidden, targets, torch.cat(normalisers), entropy)
        ctx.weight, ctx.project, ctx.softmax, ctx.size = weight, project, softmax, size
        ctx.mark_non_differentiable(is_most_likely)
        ctx.set_materialize_grads(False)
        return torch.cat(logprobs), is_most_likely, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, *_ = ctx.saved_tensors
        grad_hidden, grad_weight = torch.empty_like(hidden), None
        for start in range(0, len(hidden), ctx.size):
            rows = slice(start, start + ctx.size)
            grad_logits = _grad_logits(ctx, rows, grads)
            torch.mm(grad_logits, ctx.weight, out=grad_hidden[rows])
            if ctx.needs_input_grad[1]:
                if rows.stop < len(hidden):
                    _accumulate(ctx.weight.main_grad, grad_logits.t(), hidden[rows])
                else:
                    grad_weight = grad_logits.t() @ hidden[rows]
            del grad_logits  # or it would be there beside the next one
        dist.all_reduce(grad_hidden, group=ctx.softmax.group)
        return grad_hidden, grad_weight, None, None, None, None


def _grad_logits(ctx: Any, rows: slice, grads: tuple[Tensor | None, ...]) -> Tensor:
    """Compute the gradient of a chunk's logits `[C, V]`."""
    hidden, *kept = ctx.saved_tensors
    kept, (of_logprobs, _, of_entropy) = [
        [None if each is None else each[rows] for each in tensors] for tensors in (kept, grads)
    ]
    gradient: Tensor = ctx.softmax.differentiate(
        ctx.project(hidden[rows]), *kept, (of_logprobs, of_entropy)
    )
    return gradient


def _accumulate(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to the total, which may be of another precision."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)


def chunked_logprobs(
    hidden: Tensor,
    weight: Tensor,
    project: Callable[[Tensor], Tensor],
    targets: Tensor,
    softmax: Softmax,
    size: int,
) -> tuple[Tensor, ...]:
    """Compute what `vocab_parallel_logprobs` does of project(hidden), a chunk at a time.

    Args:
        hidden: `[N, H]`, the same on all tensor-parallel ranks.
        weight: Of the output layer on this rank `[V, H]`; where it learns, with Megatron's
            `main_grad`, to which gradients are added.
        project: Multiplies hidden states `[C, H]` with it, to logits `[C, V]`.
        targets: Token ids `[N]`, int64.
        softmax: Of the logits.
        size: Positions of a chunk, C.

    Returns:
        Log-probabilities, hits and, where they are wanted, entropies, `[N]` each.
    """
    apply: Any = _ChunkedLogprobs.apply
    logprobs, is_most_likely, entropy = apply(hidden, weight, project, targets, softmax, size)
    return (logprobs, is_most_likely) if entropy is None else (logprobs, is_most_likely, entropy)
