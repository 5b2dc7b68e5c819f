"""Float16 with a loss scale: near float32 at every layout, and nothing is moved by an overflow."""

from collections.abc import Callable

import pytest

from tests.parallel.cases import BASELINES, FLOAT16, OVERFLOW, OVERFLOW_APART, Case
from tests.parallel.float16 import STEPS, TOO_LARGE
from tests.parallel.jobs import Result

pytestmark = pytest.mark.ci

BASELINE = {case.model: case for case in BASELINES}


@pytest.mark.parametrize("case", FLOAT16, ids=lambda case: case.name)
def test_float16_follows_float32_at_every_layout(
    case: Case, result: Callable[[Case], Result]
) -> None:
    """It keeps 11 bits where bf16 keeps 8, so all is eight times nearer than bf16's 2e-3."""
    found, baseline = result(case), result(BASELINE[case.model])
    assert found["dtypes"] == ["torch.float16"]
    assert found["skipped"] == 0
    assert found["loss"] == pytest.approx(baseline["loss"], rel=2.5e-4)
    assert found["grad_norm"] == pytest.approx(baseline["grad_norm"], rel=2.5e-3)
    assert found["loss"] != pytest.approx(baseline["loss"], rel=1e-7)


@pytest.mark.parametrize("case", OVERFLOW, ids=lambda case: case.name)
def test_a_scale_that_is_too_large_is_halved_and_no_weight_moved_until_it_fits(
    case: Case, result: Callable[[Case], Result]
) -> None:
    """From 2^20 it is halved by every step but the first, as a hysteresis of 2 has it.

    After three steps in a row that fit it doubles, and the count of the hysteresis begins anew.
    """
    steps = result(case)["steps_0"]
    for rank in range(1, case.world):
        assert result(case)[f"steps_{rank}"] == steps
    scale, misses, hits, skipped = TOO_LARGE.initial, 0, 0, 0
    for _, norm, found, left_out, is_changed in steps:
        assert is_changed is (norm is not None)
        if norm is None:
            misses, hits, skipped = misses + 1, 0, skipped + 1
            scale /= 2 if misses >= 2 else 1
        else:
            hits += 1
            if hits == 3:
                misses, hits, scale = 0, 0, 2 * scale
        assert (found, left_out) == (scale, skipped)
    assert len(steps) == STEPS
    assert 7 <= skipped <= 12
    first, *_, last = [loss for loss, norm, *_ in steps if norm is not None]
    assert last < first


@pytest.mark.parametrize("case", OVERFLOW, ids=lambda case: case.name)
def test_scale_counters_and_moments_outlast_a_stop(
    case: Case, result: Callable[[Case], Result]
) -> None:
    """Two stops, the first before any step was taken, change no bit of what follows."""
    found = result(case)
    for rank in range(case.world):
        assert found[f"resumed_{rank}"] == found[f"steps_{rank}"]
        assert found[f"is_same_{rank}"] is True


@pytest.mark.parametrize("case", OVERFLOW_APART, ids=lambda case: case.name)
def test_an_overflow_of_one_rank_is_that_of_all(
    case: Case, result: Callable[[Case], Result]
) -> None:
    """Whether it has another part of the batch, of the layers or of their weights.

    The scale goes from 2 to its minimum 1; with infinities even there, no smaller one can help.
    """
    found = result(case)
    for rank in range(case.world):
        assert found[f"found_{rank}"] == [None, 1.0, 1]
        assert "not finite in float16 at the smallest loss scale, 1," in found[f"message_{rank}"]
        assert found[f"is_same_{rank}"] is True
