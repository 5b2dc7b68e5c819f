"""The job of the vocabulary-parallel functions: on every rank, against torch on whole logits."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.parallel.cases import Case

if TYPE_CHECKING:
    from torch import Tensor

ROWS, COLUMNS, VOCABULARY = 10, 8, 13
"""Thirteen tokens on two ranks of eight columns: the last three columns are padding."""

Statistics = tuple["Tensor", "Tensor", "Tensor"]
"""Log-probabilities, entropies (zeros where they were not asked for), and the gradient of all
columns."""


def vocab_parallel(case: Case, folder: Path) -> dict[str, Any]:
    """Log-probabilities, entropies and gradients on two ranks, against those of whole logits."""
    import torch

    from alignctl.models import vocab_parallel as module

    generator = torch.Generator().manual_seed(5)
    whole = 8 * torch.randn(ROWS, 2 * COLUMNS, generator=generator, dtype=torch.float64)
    whole[0] += 100.0  # a naive exponential overflows
    whole[1, 2] = 60.0  # near certainty: 1 - p must not be lost
    targets = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    targets[:4] = torch.tensor([12, 2, 0, 8])
    upstream = torch.randn(2, ROWS, generator=generator, dtype=torch.float64)

    found, hits = _ours(whole.float(), targets, upstream[:1])
    likely = whole[:, :VOCABULARY].argmax(1) == targets
    both, both_hits = _ours(whole.float(), targets, upstream, temperature=0.7)
    loud = whole.float()
    loud[:, VOCABULARY:] = 1e6
    brief = whole.to(torch.bfloat16)
    found_brief, _ = _ours(brief, targets, upstream[:1])
    both_brief, _ = _ours(brief, targets, upstream, temperature=0.7)
    usual, module.CHUNK_ELEMENTS = module.CHUNK_ELEMENTS, 3 * COLUMNS
    chunked, chunked_hits = _ours(whole.float(), targets, upstream[:1])
    both_chunked, _ = _ours(whole.float(), targets, upstream, temperature=0.7)
    module.CHUNK_ELEMENTS = usual
    small = torch.randn(ROWS, 2 * COLUMNS, generator=generator, dtype=torch.float64)
    return {
        "dtype": str(found[0].dtype),
        **_differences("", found, _torchs(whole.float(), targets, upstream[:1])),
        **_differences("both_", both, _torchs(whole.float(), targets, upstream, temperature=0.7)),
        "padding_gradient": found[2][:, VOCABULARY:].abs().max().item(),
        "hits_are_right": torch.equal(hits, likely) and bool(hits.any()) and not bool(hits.all()),
        "is_temperature_no_matter_for_hits": torch.equal(hits, both_hits),
        "is_padding_ignored": _equal(found, _ours(loud, targets, upstream[:1])[0])
        and _equal(both, _ours(loud, targets, upstream, temperature=0.7)[0]),
        "is_chunking_invisible": _equal(found, chunked)
        and torch.equal(hits, chunked_hits)
        and _equal(both, both_chunked),
        "bf16_dtype": str(found_brief[0].dtype),
        **_differences("bf16_", found_brief, _torchs(brief, targets, upstream[:1])),
        "bf16_gradient_relative": _relative(
            found_brief[2], _torchs(brief, targets, upstream[:1])[2]
        ),
        "bf16_both_gradient_relative": _relative(
            both_brief[2], _torchs(brief, targets, upstream, temperature=0.7)[2]
        ),
        "gradcheck": [
            torch.autograd.gradcheck(
                _of_whole(targets % vocabulary, vocabulary, temperature),
                (small.clone().requires_grad_(),),
            )
            # Of seven tokens, all are on the first rank.
            for vocabulary, temperature in ((VOCABULARY, 1.0), (VOCABULARY, 0.7), (7, 2.0))
        ],
    }


def _ours(
    full: "Tensor", targets: "Tensor", upstream: "Tensor", *, temperature: float = 1.0
) -> tuple[Statistics, "Tensor"]:
    """What the functions compute on this rank's columns; and whether targets are most likely.

    The loss is the product with `upstream`: `[1, N]` for log-probabilities alone, `[2, N]` for
    entropies too.
    """
    import torch
    from megatron.core import tensor_parallel

    from alignctl.config.sections import Parallel
    from alignctl.engines.megatron.groups import groups_of
    from alignctl.models.vocab_parallel import Softmax, vocab_parallel_logprobs

    group = groups_of(Parallel(tp=2)).tp
    rank = group.rank()
    local = full[:, rank * COLUMNS : (rank + 1) * COLUMNS].clone().requires_grad_()
    softmax = Softmax(group, VOCABULARY, temperature, with_entropy=len(upstream) == 2)
    logprobs, hits, *found = vocab_parallel_logprobs(local, targets, softmax)
    (entropy,) = found or [torch.zeros_like(logprobs)]
    outputs = [logprobs, *found]
    (grad,) = torch.autograd.grad(outputs, local, list(upstream.to(logprobs.dtype)))
    gathered = tensor_parallel.gather_from_tensor_model_parallel_region(grad, group=group)
    return (logprobs.detach(), entropy.detach(), gathered), hits


def _torchs(
    full: "Tensor", targets: "Tensor", upstream: "Tensor", *, temperature: float = 1.0
) -> Statistics:
    """The same by torch in float64, on the columns that are tokens."""
    import torch

    real = full[:, :VOCABULARY].double().requires_grad_()
    logprobs = (real / temperature).log_softmax(1)
    chosen = logprobs.gather(1, targets[:, None])[:, 0]
    if len(upstream) == 1:
        (grad,) = torch.autograd.grad(chosen, real, upstream[0])
        return chosen.detach(), torch.zeros_like(chosen), grad
    entropy = torch.distributions.Categorical(logits=logprobs).entropy()
    (grad,) = torch.autograd.grad([chosen, entropy], real, list(upstream))
    return chosen.detach(), entropy.detach(), grad


def _of_whole(
    targets: "Tensor", vocabulary: int, temperature: float
) -> "Callable[[Tensor], tuple[Tensor, Tensor]]":
    """Log-probabilities and entropies as a function of all columns, for finite differences.

    Both ranks perturb the same element of the same table, and add up what they find.
    """
    from megatron.core import tensor_parallel

    from alignctl.config.sections import Parallel
    from alignctl.engines.megatron.groups import groups_of
    from alignctl.models.vocab_parallel import Softmax, vocab_parallel_logprobs

    group = groups_of(Parallel(tp=2)).tp
    softmax = Softmax(group, vocabulary, temperature, with_entropy=True)

    def compute(full: "Tensor") -> tuple["Tensor", "Tensor"]:
        local = tensor_parallel.scatter_to_tensor_model_parallel_region(full, group=group)
        logprobs, _, entropy = vocab_parallel_logprobs(local, targets, softmax)
        return logprobs, entropy

    return compute


def _differences(prefix: str, found: Statistics, expected: Statistics) -> dict[str, float]:
    """The largest difference of each of the three."""
    names = ("logprob", "entropy", "gradient")
    return {
        f"{prefix}{name}_difference": (ours[..., : theirs.shape[-1]] - theirs).abs().max().item()
        for name, ours, theirs in zip(names, found, expected, strict=True)
    }


def _equal(found: Statistics, others: Statistics) -> bool:
    return all(bool((ours == theirs).all()) for ours, theirs in zip(found, others, strict=True))


def _relative(found: "Tensor", expected: "Tensor") -> float:
    """The largest relative error; gradients below 1e-3 count as that."""
    error = (found[:, :VOCABULARY].double() - expected).abs() / expected.abs().clamp(min=1e-3)
    return error.max().item()
