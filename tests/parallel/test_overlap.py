"""Traffic between copies behind compute: the same numbers, and the same bits when resumed."""

from collections.abc import Callable

import pytest

from tests.parallel.cases import OVERLAP, Case
from tests.parallel.jobs import Result

pytestmark = pytest.mark.ci


@pytest.mark.parametrize("case", OVERLAP, ids=lambda case: case.name)
def test_steps_are_those_without_it(case: Case, result: Callable[[Case], Result]) -> None:
    """Loss, gradient norm and the loss of a validation of three steps.

    Two ranks' sums have one order, so weights have the same bits; but where each rank takes the
    norm of its own share of the gradient, buckets decide which share that is.
    """
    found = result(case)
    without, overlapped = found["numbers"]
    assert len(overlapped) == 3
    for ours, theirs in zip(overlapped, without, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    if not case.parallel.distributed_optimizer:
        assert found["off"] == 0


@pytest.mark.parametrize("case", OVERLAP, ids=lambda case: case.name)
def test_a_resumed_run_is_an_uninterrupted_one_bit_for_bit(
    case: Case, result: Callable[[Case], Result]
) -> None:
    assert result(case)["resumed_differently"] == []


@pytest.mark.parametrize("case", OVERLAP, ids=lambda case: case.name)
def test_sums_start_before_the_backward_pass_ends_and_weights_come_with_the_next_step(
    case: Case, result: Callable[[Case], Result]
) -> None:
    """From the second step on: in the first one Megatron learns when a bucket is full."""
    found = result(case)
    first, *later = found["under_way"]
    assert not any(first)
    assert len(later) == 2
    assert all(all(step) for step in later)
    assert len(first) > 1
    assert found["is_gathered_late"] is case.parallel.overlap_param_gather


@pytest.mark.parametrize("case", OVERLAP, ids=lambda case: case.name)
def test_a_bucket_that_could_not_be_saved_is_refused_at_the_start(
    case: Case, result: Callable[[Case], Result]
) -> None:
    """A norm of 32 weights is filled up to 128: the second half of it has none."""
    message = result(case)["refused"]
    if not case.parallel.distributed_optimizer or case.parallel.pp > 1:
        assert message == ""
        return
    assert message.startswith("parallel.overlap_grad_reduce: a bucket of gradients has ")
    assert "too few for 2 copies" in message
