"""Estimators of the KL divergence by hand and in expectation, and its controllers."""

import json
import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alignctl.algorithms.kl import AdaptiveKL, FixedKL, k1, k2, k3, kl_loss, sequence_kl
from tests.algorithms.experience import segments_of, tokens

# One token of probability 1/2 where the reference has 1/4, and one the other way round.
LOGPROBS = tokens(math.log(0.5), math.log(0.25))
REFERENCE = tokens(math.log(0.25), math.log(0.5))


def test_the_estimators_by_hand() -> None:
    """d = ln 2 and -ln 2. k2 = (ln 2)^2 / 2 = 0.240227. k3 = 1/2 - 1 + ln 2 = 0.193147 and
    2 - 1 - ln 2 = 0.306853."""
    assert k1(LOGPROBS, REFERENCE).tolist() == pytest.approx([0.693147, -0.693147], abs=1e-6)
    assert k2(LOGPROBS, REFERENCE).tolist() == pytest.approx([0.240227] * 2, abs=1e-6)
    assert k3(LOGPROBS, REFERENCE).tolist() == pytest.approx([0.193147, 0.306853], abs=1e-6)


def test_the_loss_has_the_value_of_k3_and_the_gradient_of_k2() -> None:
    """d / d log p of d^2 / 2 is d: ln 2 and -ln 2; that of k3, 1 - e^-d, would be 0.5 and -1."""
    logprobs = LOGPROBS.clone().requires_grad_()
    loss = kl_loss(logprobs, REFERENCE)
    assert torch.equal(loss, k3(LOGPROBS, REFERENCE))
    loss.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([math.log(2), -math.log(2)])


def expectation(estimate: Tensor, logits: Tensor) -> Tensor:
    """Of numbers per token, over the policy's own tokens; the sampling has no gradient."""
    return (logits.detach().softmax(0) * estimate).sum()


def gradient(value: Tensor, logits: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value, logits, retain_graph=True)
    return found


def test_in_expectation_values_and_gradients_are_as_the_table_says() -> None:
    """All of a vocabulary of 5, weighed by the policy, which is sampling without noise."""
    logits = tokens(0.3, -1.0, 0.8, 0.0, 1.5).requires_grad_()
    policy, reference = logits.log_softmax(0), tokens(1.0, 0.2, -0.4, 0.1, 0.0).log_softmax(0)
    kl = (policy.exp() * (policy - reference)).sum()
    reverse = (reference.exp() * (reference - policy)).sum()
    right, other = gradient(kl, logits), gradient(reverse, logits)

    estimates = {
        estimator: expectation(estimator(policy, reference), logits)
        for estimator in (k1, k2, k3, kl_loss)
    }
    for unbiased in (k1, k3, kl_loss):
        assert estimates[unbiased].item() == pytest.approx(kl.item())
    gradients = {name: gradient(value, logits) for name, value in estimates.items()}
    assert torch.allclose(gradients[k1], torch.zeros_like(right))
    assert torch.allclose(gradients[k2], right)
    assert torch.allclose(gradients[kl_loss], right)
    assert torch.allclose(gradients[k3], other)
    assert not torch.allclose(right, other, atol=0.01)


@given(st.lists(st.floats(-60, 60), min_size=1, max_size=20))
def test_k3_is_never_negative_and_finite(distances: list[float]) -> None:
    values = k3(tokens(*distances).float(), torch.zeros(len(distances)))
    assert bool((values >= -1e-9).all())
    assert bool(values.isfinite().all())


def test_k3_keeps_its_digits_near_equality() -> None:
    """d^2 / 2 = 5e-13 for d = 1e-6, in fp32, where exp(-d) - 1 + d would be 0 or 1e-7."""
    value = k3(torch.tensor(1e-6), torch.tensor(0.0)).item()
    assert 0 <= value < 1e-12


def test_a_policy_that_is_its_reference_has_no_divergence() -> None:
    for estimator in (k1, k2, k3, kl_loss):
        assert estimator(LOGPROBS, LOGPROBS).tolist() == [0, 0]
    assert sequence_kl(LOGPROBS, LOGPROBS, segments_of(1, 1)) == 0


def test_the_divergence_of_sequences_is_summed_over_their_tokens() -> None:
    """Differences 1 + 2 and 4: a mean of 3.5, not one per token."""
    kl = sequence_kl(tokens(1, 2, 4), tokens(0, 0, 0), segments_of(2, 1))
    assert kl == 3.5


def test_the_adaptive_controller_by_hand() -> None:
    """Target 6, horizon 10,000, 100 samples a step. At a KL of 6.6 the error is 0.1: times
    1 + 0.1 x 0.01 = 1.001. Errors of 1 and -1 count as 0.2 and -0.2: times 1.002 and 0.998."""
    controller = AdaptiveKL(coef=0.02, target=6.0, horizon=10_000)
    assert controller.next(6.6, 100).coef == pytest.approx(0.02 * 1.001)
    assert controller.next(12.0, 100).coef == pytest.approx(0.02 * 1.002)
    assert controller.next(0.0, 100).coef == pytest.approx(0.02 * 0.998)
    assert controller.next(6.0, 100) == controller


def test_the_adaptive_controller_refuses_a_kl_that_is_not_finite() -> None:
    with pytest.raises(AssertionError):
        AdaptiveKL(0.02, 6.0, 10_000).next(math.nan, 1)


def test_the_fixed_controller_stays() -> None:
    assert FixedKL(0.1).next(100.0, 5) == FixedKL(0.1)


def test_a_controller_comes_back_from_json() -> None:
    controller = AdaptiveKL(0.02, 6.0, 10_000).next(7.3, 64)
    assert AdaptiveKL(**json.loads(json.dumps(asdict(controller)))) == controller


@given(st.floats(0, 100), st.integers(1, 500))
def test_the_coefficient_moves_towards_the_target(kl: float, num_samples: int) -> None:
    controller = AdaptiveKL(1.0, 6.0, 10_000)
    moved = controller.next(kl, num_samples).coef
    assert moved > 0
    assert (moved > 1) == (kl / 6.0 - 1 > 0) or abs(moved - 1) < 1e-12
