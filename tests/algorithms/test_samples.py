"""Numbers per token of all samples, and where a micro batch's tokens are among them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given

from alignctl.algorithms.samples import Segments, select
from tests.algorithms.experience import (
    batch_of,
    normal,
    placed,
    samples_and_split,
    segments_of,
    targets_of,
    tokens,
)

SEGMENTS = segments_of(2, 1, 3)
VALUES = tokens(1, 2, 3, 4, 5, 6)


def test_sums_means_ends_and_spreading() -> None:
    """Samples [1, 2], [3] and [4, 5, 6]."""
    assert SEGMENTS.lengths.tolist() == [2, 1, 3]
    assert SEGMENTS.last.tolist() == [1, 2, 5]
    assert SEGMENTS.sums(VALUES).tolist() == [3, 3, 15]
    assert SEGMENTS.means(VALUES).tolist() == [1.5, 3, 5]
    assert SEGMENTS.spread(torch.tensor([7, 8, 9])).tolist() == [7, 7, 8, 9, 9, 9]
    assert SEGMENTS.spread(torch.tensor([True, False, True])).tolist() == [True] * 2 + [
        False,
        True,
        True,
        True,
    ]


def test_sums_have_gradients() -> None:
    values = VALUES.clone().requires_grad_()
    (SEGMENTS.sums(values) * tokens(1, 10, 100)).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1, 1, 10, 100, 100, 100]


def test_a_sample_has_a_token() -> None:
    with pytest.raises(AssertionError, match="without a response token"):
        segments_of(2, 0)


def test_a_micro_batch_finds_its_tokens() -> None:
    """Samples 2 and 0, with two prompt tokens each, of which the second predicts the first token
    of the response: inputs are p p a b | p p a, so positions 1 to 3 and 5 to 6."""
    batch = batch_of(SEGMENTS, [2, 0])
    positions, indices, local = select(batch, targets_of(batch, extra=3), SEGMENTS)
    assert positions.tolist() == [1, 2, 3, 5, 6]
    assert indices.tolist() == [3, 4, 5, 0, 1]
    assert local.lengths.tolist() == [3, 2]


def test_a_filler_has_no_tokens() -> None:
    batch = batch_of(SEGMENTS, [])
    positions, indices, local = select(batch, targets_of(batch), SEGMENTS)
    assert len(positions) == len(indices) == len(local.lengths) == 0
    assert local.sums(VALUES[indices]).shape == (0,)
    assert local.spread(VALUES[:0]).shape == (0,)


def test_a_document_of_another_length_is_refused() -> None:
    batch = batch_of(SEGMENTS, [1, 2])
    with pytest.raises(AssertionError, match="not the sample's response"):
        select(replace(batch, rows=(2, 1)), targets_of(batch), SEGMENTS)


@given(samples_and_split())
def test_what_was_placed_is_found(split: tuple[Segments, list[list[int]]]) -> None:
    """Each token once, over all micro batches, fillers among them."""
    segments, micro_batches = split
    values = normal(0, int(segments.offsets[-1]))
    seen = torch.zeros(len(values))
    for samples in micro_batches:
        batch = batch_of(segments, samples)
        positions, indices, local = select(batch, targets_of(batch, 2), segments)
        assert torch.equal(placed(batch, segments, values, 2)[positions], values[indices])
        assert torch.equal(local.sums(values[indices]), segments.sums(values)[samples])
        seen[indices] += 1
    assert bool((seen == 1).all())
