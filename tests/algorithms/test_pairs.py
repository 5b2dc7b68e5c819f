"""Sums per document, pairs as tensors, and the order of a pair."""

import torch

from alignctl.algorithms.pairs import agreement, document_sums, pair_tensors
from tests.algorithms.preferences import batch_of, numbered


def test_the_tokens_of_each_document_are_summed() -> None:
    """Documents of 3 and 4 inputs: 1 + 2 + 3 and 4 + 5 + 6 + 7; what fills the batch up is not
    counted. Each token counts once: its gradient is 1."""
    batch = batch_of(numbered([(1, 1.0), (2, 0.0)]))
    values = torch.arange(1.0, 10.0, requires_grad=True)
    sums = document_sums(values, batch)
    assert sums.tolist() == [6, 22]
    sums.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1] * 7 + [0] * 2


def test_pairs_are_tensors_like_the_one_given() -> None:
    batch = batch_of(numbered([(1, 0.0), (1, 1.0)]))
    better, worse, share = pair_tensors(batch, torch.zeros(1))
    assert (better.tolist(), worse.tolist(), share.tolist()) == ([1], [0], [1])
    assert (better.dtype, share.dtype) == (torch.int64, torch.float32)


def test_a_margin_of_zero_is_half_right() -> None:
    assert agreement(torch.tensor([0.1, 0.0, -2.0])).tolist() == [1, 0.5, 0]
