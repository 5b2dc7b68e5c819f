"""Samples of given lengths, and what an engine would compute for micro batches of them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from alignctl.algorithms.loss import Output, Values
from alignctl.algorithms.policy_loss import PolicyLoss
from alignctl.algorithms.samples import Segments
from alignctl.config.on_policy import Clipping, Trust
from alignctl.data.batch import IGNORE, Document, TokenBatch

PROMPT = 2
NOT_MOST_LIKELY = torch.zeros(0, dtype=torch.bool)


def segments_of(*lengths: int) -> Segments:
    return Segments.of_lengths(torch.tensor(lengths))


def batch_of(segments: Segments, samples: Sequence[int]) -> TokenBatch:
    """The micro batch of some samples; of none: a filler."""
    lengths = segments.lengths.tolist()
    return TokenBatch.from_documents([_document(sample, lengths[sample]) for sample in samples])


def _document(sample: int, length: int) -> Document:
    total = PROMPT + length
    return Document(np.full(total, sample, np.int32), np.arange(total) >= PROMPT, sample)


def targets_of(batch: TokenBatch, extra: int = 0) -> Tensor:
    """Targets as an engine has them that added some tokens at the end."""
    targets = torch.from_numpy(batch.targets)
    return torch.nn.functional.pad(targets, (0, extra), value=IGNORE)


def placed(batch: TokenBatch, segments: Segments, values: Tensor, extra: int = 0) -> Tensor:
    """Numbers of response tokens `[N]` at their places in a micro batch, 0 elsewhere."""
    # A model's output has a gradient for a filler too: here, 0 for each token.
    placed = values.new_zeros(batch.num_tokens + extra) + 0 * values.sum()
    for document, sample in enumerate(batch.rows):
        if sample >= 0:
            end = batch.pieces.boundaries[document + 1]
            start, stop = segments.offsets[sample : sample + 2].tolist()
            placed[end - (stop - start) : end] = values[start:stop]
    return placed


def policy_output(
    batch: TokenBatch, segments: Segments, logprobs: Tensor, entropy: Tensor | None = None
) -> Output:
    return Output(
        placed(batch, segments, logprobs),
        NOT_MOST_LIKELY,
        None if entropy is None else placed(batch, segments, entropy),
    )


def value_output(batch: TokenBatch, segments: Segments, values: Tensor) -> Values:
    return Values(placed(batch, segments, values))


def normal(seed: int, count: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, generator=generator, dtype=torch.float64)


def tokens(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


lengths_of_samples = st.lists(st.integers(1, 6), min_size=1, max_size=7)

seeds = st.integers(0, 10_000)


@st.composite
def samples_and_split(draw: st.DrawFn) -> tuple[Segments, list[list[int]]]:
    """Samples, and the same in another order, dealt to micro batches; some of those are empty."""
    lengths = draw(lengths_of_samples)
    shuffled = draw(st.permutations(range(len(lengths))))
    cuts = sorted(draw(st.lists(st.integers(0, len(lengths)), max_size=3)))
    edges = [0, *cuts, len(lengths)]
    return segments_of(*lengths), [list(shuffled[a:b]) for a, b in pairwise(edges)]


def policy_loss(
    segments: Segments,
    old: Tensor,
    advantages: Tensor,
    *,
    reference: Tensor | None = None,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    kl_coef: float = 0.0,
    max_tokens: int | None = None,
    has_entropy: bool = False,
    **settings: Any,
) -> PolicyLoss:
    """A policy loss; its sampler is as far off as gives these weights, or leaves tokens out."""
    assert weights is None or mask is None
    sampler = trust = None
    if weights is not None:
        sampler, trust = old - weights.log(), Trust(correction="truncate", cap=1e9)
    if mask is not None:
        sampler, trust = old.where(mask, old - 10), Trust(correction="mask_tokens")
    return PolicyLoss(
        Clipping(**settings),
        segments,
        advantages,
        old_logprobs=old,
        sampler_logprobs=sampler,
        trust=trust,
        reference=reference,
        kl_coef=kl_coef,
        max_tokens=max_tokens,
        has_entropy=has_entropy,
    )
