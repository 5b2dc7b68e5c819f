"""The value model's loss and what it reports."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignctl.algorithms.loss import LossTerms
from alignctl.algorithms.samples import Segments
from alignctl.algorithms.value_loss import ValueLoss, report
from tests.algorithms.experience import (
    batch_of,
    normal,
    samples_and_split,
    seeds,
    segments_of,
    targets_of,
    tokens,
    value_output,
)
from tests.algorithms.preferences import added

SEGMENTS = segments_of(2, 1)
OLD, RETURNS = tokens(0, 0, 0), tokens(1, 1, 2)
VALUES = tokens(0.05, 0.5, -0.5)


def terms_of(loss: ValueLoss, values: Tensor) -> LossTerms:
    batch = batch_of(loss.segments, range(len(loss.segments.lengths)))
    return loss(value_output(batch, loss.segments, values), targets_of(batch), batch)


def value_and_gradient(loss: ValueLoss) -> tuple[float, list[float]]:
    values = VALUES.clone().requires_grad_()
    terms = terms_of(loss, values)
    (terms.total / terms.weight).backward()
    assert values.grad is not None
    return (terms.total / terms.weight).item(), values.grad.tolist()


def test_the_loss_by_hand() -> None:
    """Token 1 is inside: 0.95^2. Token 2 moved 0.5 towards its return: max(0.5^2, 0.9^2), no
    gradient. Token 3 moved away: max(2.5^2, 2.1^2), pulled back. Half of each, over 3."""
    value, gradient = value_and_gradient(ValueLoss(SEGMENTS, OLD, RETURNS))
    assert value == pytest.approx((0.9025 + 0.81 + 6.25) / 6)
    assert gradient == pytest.approx([-0.95 / 3, 0, -2.5 / 3])


def test_without_a_clip_by_hand() -> None:
    value, gradient = value_and_gradient(ValueLoss(SEGMENTS, OLD, RETURNS, clip=None))
    assert value == pytest.approx((0.9025 + 0.25 + 6.25) / 6)
    assert gradient == pytest.approx([-0.95 / 3, -0.5 / 3, -2.5 / 3])


def test_clipped_values_only_by_hand() -> None:
    """Token 3 costs 2.1^2 and is not pulled back: why this is not the default."""
    loss = ValueLoss(SEGMENTS, OLD, RETURNS, is_clipped_only=True)
    value, gradient = value_and_gradient(loss)
    assert value == pytest.approx((0.9025 + 0.81 + 4.41) / 6)
    assert gradient == pytest.approx([-0.95 / 3, 0, 0])


def reported(loss: ValueLoss, values: Tensor) -> dict[str, float]:
    terms = terms_of(loss, values)
    assert tuple(terms.metrics) == loss.metric_names
    return report({name: (each / terms.weight).item() for name, each in terms.metrics.items()})


def test_the_report_by_hand() -> None:
    """Returns 1, 1, 2: variance 2/9. Errors 0.95, 0.5, 2.5: mean 1.316667, mean square 2.467500,
    variance 0.733889: explained 1 - 3.3025. Clipped without a gradient: token 2."""
    assert reported(ValueLoss(SEGMENTS, OLD, RETURNS), VALUES) == pytest.approx(
        {
            "value": 0.05 / 3,
            "return": 4 / 3,
            "clip_fraction": 1 / 3,
            "explained_variance": 1 - 0.733889 / (2 / 9),
        },
        abs=1e-5,
    )


def test_perfect_values_and_useless_ones() -> None:
    loss = ValueLoss(SEGMENTS, OLD, RETURNS)
    assert reported(loss, RETURNS)["explained_variance"] == pytest.approx(1)
    assert reported(loss, RETURNS - 7)["explained_variance"] == pytest.approx(1)
    assert reported(loss, tokens(5, 5, 5))["explained_variance"] == pytest.approx(0)


def test_nothing_is_explained_where_nothing_varies() -> None:
    assert "explained_variance" not in reported(ValueLoss(SEGMENTS, OLD, tokens(3, 3, 3)), VALUES)


def test_masked_tokens_count_nowhere() -> None:
    loss = ValueLoss(SEGMENTS, OLD, RETURNS, torch.tensor([True, False, False]))
    value, gradient = value_and_gradient(loss)
    assert value == pytest.approx(0.9025 / 2)
    assert gradient == pytest.approx([-0.95, 0, 0])


@given(samples_and_split(), seeds, st.booleans(), st.booleans())
@settings(max_examples=40)
def test_no_split_changes_loss_gradient_or_metrics(
    split: tuple[Segments, list[list[int]]], seed: int, is_clipped_only: bool, is_masked: bool
) -> None:
    segments, micro_batches = split
    count = int(segments.offsets[-1])
    old, returns, found = (normal(seed + i, count) for i in range(3))
    mask = normal(seed + 9, count) > -0.3 if is_masked else None
    loss = ValueLoss(segments, old, returns, mask, is_clipped_only=is_clipped_only)
    whole_values = found.clone().requires_grad_()
    whole = terms_of(loss, whole_values)
    whole.total.backward()

    values = found.clone().requires_grad_()
    parts = []
    for samples in micro_batches:
        batch = batch_of(segments, samples)
        parts.append(loss(value_output(batch, segments, values), targets_of(batch), batch))
        parts[-1].total.backward()
    assert added(parts) == pytest.approx(added([whole]), abs=1e-9)
    assert values.grad is not None
    assert whole_values.grad is not None
    assert torch.allclose(values.grad, whole_values.grad, atol=1e-12)


@given(samples_and_split(), seeds)
@settings(max_examples=40)
def test_explained_variance_is_that_of_all_tokens(
    split: tuple[Segments, list[list[int]]], seed: int
) -> None:
    segments, _ = split
    count = int(segments.offsets[-1])
    returns, values = normal(seed, count), normal(seed + 1, count)
    found = reported(ValueLoss(segments, values, returns), values)
    if count > 1:
        expected = 1 - ((returns - values).var(correction=0) / returns.var(correction=0)).item()
        assert found["explained_variance"] == pytest.approx(expected, rel=1e-6, abs=1e-6)
    else:
        assert "explained_variance" not in found


@pytest.mark.parametrize("clip", [0.1, None])
def test_gradients_are_those_of_the_values(clip: float | None) -> None:
    segments = segments_of(4, 1, 6)
    loss = ValueLoss(segments, normal(0, 11), normal(1, 11), clip=clip)
    values = (normal(0, 11) + normal(2, 11, 0.2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: terms_of(loss, x).total, (values,))
