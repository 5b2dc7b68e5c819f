import math

import pytest
import torch

from alignctl.algorithms.cross_entropy import CrossEntropy
from alignctl.algorithms.loss import Output
from alignctl.data.batch import IGNORE


def test_the_terms_are_sums_over_learned_tokens() -> None:
    """Probabilities 1/2, 1/4, 1 of three learned tokens: ln 2 + ln 4 + 0 = 3 ln 2; two were
    ranked first. The two that are not learned come as zeros, as engines give them."""
    output = Output(
        logprobs=torch.tensor([0.0, math.log(1 / 2), math.log(1 / 4), 0.0, 0.0]),
        is_most_likely=torch.tensor([False, True, False, False, True]),
    )
    targets = torch.tensor([IGNORE, 7, 0, IGNORE, 3])
    terms = CrossEntropy()(output, targets, None)
    assert terms.total.item() == pytest.approx(3 * math.log(2))
    assert terms.weight.item() == 3
    assert {name: value.item() for name, value in terms.metrics.items()} == {"token_accuracy": 2}
    assert tuple(terms.metrics) == CrossEntropy.metric_names


def test_each_learned_token_has_the_same_gradient() -> None:
    """d(-sum log p) / d(log p) = -1: the engine divides by the weight, not the loss."""
    logprobs = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    output = Output(logprobs, torch.zeros(3, dtype=torch.bool))
    CrossEntropy()(output, torch.tensor([1, 2, 3]), None).total.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-1, -1, -1]


def test_token_zero_is_learned_like_any_other() -> None:
    """A mask by truth value instead of by IGNORE would lose it."""
    output = Output(torch.tensor([-1.0]), torch.tensor([True]))
    assert CrossEntropy()(output, torch.tensor([0]), None).weight.item() == 1
