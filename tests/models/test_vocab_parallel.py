"""On one rank that holds the whole vocabulary: log_softmax and entropy as torch has them.

tests/parallel/test_vocab_parallel.py has the vocabulary cut in two.
"""

import math

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alignctl.models.vocab_parallel import Softmax, vocab_parallel_logprobs


@pytest.fixture(scope="module", autouse=True)
def group(alone: dist.ProcessGroup) -> dist.ProcessGroup:
    return alone


def statistics(
    logits: Tensor, targets: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    group = dist.group.WORLD
    assert group is not None
    softmax = Softmax(group, logits.shape[1], temperature, with_entropy=True)
    logprobs, is_most_likely, entropy = vocab_parallel_logprobs(logits, targets, softmax)
    return logprobs, is_most_likely, entropy


def test_two_tokens_by_hand() -> None:
    """Logits 2 ln 3 and 0 at temperature 2 are probabilities 3/4 and 1/4: the entropy is
    3/4 ln(4/3) + 1/4 ln 4 = 0.562335. At temperature 1 they are 9/10 and 1/10."""
    logits = torch.tensor([[2 * math.log(3.0), 0.0]])
    logprobs, is_most_likely, entropy = statistics(logits, torch.tensor([1]), 2.0)
    assert logprobs.item() == pytest.approx(math.log(1 / 4))
    assert entropy.item() == pytest.approx(0.562335, abs=1e-6)
    assert not is_most_likely.item()
    assert statistics(logits, torch.tensor([0]))[0].item() == pytest.approx(math.log(9 / 10))


@given(
    st.integers(1, 9),
    st.integers(2, 30),
    st.floats(0.1, 5.0),
    st.floats(0.0, 30.0),
    st.integers(0, 2**32),
)
def test_values_and_gradients_are_those_of_torch(
    rows: int, vocabulary: int, temperature: float, scale: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    weights = torch.randn(2, rows, generator=generator, dtype=torch.float64)

    ours = logits.clone().requires_grad_()
    logprobs, _, entropy = statistics(ours, targets, temperature)
    (weights[0] @ logprobs + weights[1] @ entropy).backward()

    theirs = logits.clone().requires_grad_()
    expected = (theirs / temperature).log_softmax(1)
    chosen = expected.gather(1, targets[:, None])[:, 0]
    expected_entropy = -(expected.exp() * expected).sum(1)
    (weights[0] @ chosen + weights[1] @ expected_entropy).backward()

    assert torch.allclose(logprobs, chosen, rtol=1e-10, atol=1e-10)
    assert torch.allclose(entropy, expected_entropy, rtol=1e-10, atol=1e-10)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-9, atol=1e-10)


def test_log_probabilities_do_not_depend_on_whether_entropy_is_wanted() -> None:
    """Nor does their gradient: fine-tuning and reinforcement learning agree to the bit."""
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([0, 6, 3, 3])
    with_entropy, without = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found, _, _ = statistics(with_entropy, targets, 0.9)
    group = dist.group.WORLD
    assert group is not None
    alone, _ = vocab_parallel_logprobs(without, targets, Softmax(group, 7, 0.9))
    found.sum().backward()
    alone.sum().backward()
    assert torch.equal(found, alone)
    assert with_entropy.grad is not None
    assert without.grad is not None
    assert torch.equal(with_entropy.grad, without.grad)


def test_the_entropy_alone_has_a_gradient_too() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 1, 2])
    assert torch.autograd.gradcheck(lambda x: statistics(x, targets)[2], (logits,))


def test_impossible_tokens_have_no_part_in_the_entropy() -> None:
    """Two tokens of equal logits and one of -inf: ln 2, and no NaN from 0 times infinity."""
    logits = torch.tensor([[1.0, float("-inf"), 1.0]], requires_grad=True)
    logprobs, _, entropy = statistics(logits, torch.tensor([0]))
    assert entropy.item() == pytest.approx(math.log(2))
    (logprobs + entropy).sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0.5, 0.0, -0.5]]


def test_bf16_logits_give_fp32() -> None:
    logits = torch.zeros(2, 8, dtype=torch.bfloat16)
    logprobs, _, entropy = statistics(logits, torch.tensor([0, 1]))
    assert logprobs.dtype == entropy.dtype == torch.float32
    assert entropy.tolist() == pytest.approx([math.log(8)] * 2)
