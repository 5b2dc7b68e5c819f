"""What the engine promises beside numbers: bad steps leave no trace, every rank hears a stop."""

from collections.abc import Callable

import pytest

from tests.parallel.cases import BASELINES, RESHARD, SPOILT_STEPS, STOP, Case
from tests.parallel.jobs import Result

pytestmark = pytest.mark.ci


@pytest.mark.parametrize("case", SPOILT_STEPS, ids=lambda case: case.name)
def test_a_step_that_is_not_finite_changes_nothing(
    case: Case, result: Callable[[Case], Result]
) -> None:
    """Neither the weights nor the optimizer: the next step is the first of an untouched run."""
    found, baseline = result(case), result(BASELINES[0])
    of_loss, of_gradient = found["messages"]
    assert of_loss == "the loss is nan"
    assert of_gradient.startswith("the gradient norm is ")
    assert found["is_unchanged"] is True
    assert found["is_trained_then"] is True
    assert found["loss"] == pytest.approx(baseline["loss"][0], rel=1e-5)
    assert found["grad_norm"] == pytest.approx(baseline["grad_norm"][0], rel=1e-5)


def test_every_rank_hears_that_one_was_asked_to_stop(result: Callable[[Case], Result]) -> None:
    found = result(STOP)
    assert [found[f"heard_by_{rank}"] for rank in range(2)] == [[False, True], [False, True]]


def test_logits_are_computed_only_where_a_token_is_learned(
    result: Callable[[Case], Result],
) -> None:
    """One row for a batch without any: the ranks need an even number of collectives."""
    found = result(STOP)
    assert found["rows"] == [max(1, learned) for learned in found["learned"]]
    assert 0 in found["learned"]


@pytest.mark.parametrize("case", RESHARD, ids=lambda case: case.name)
def test_what_megatron_saves_at_any_layout_is_read_in_one_process(
    case: Case, result: Callable[[Case], Result]
) -> None:
    """Every tensor is put together from the chunks of four ranks, bit for bit."""
    found = result(case)
    assert found["different"] == []
    assert found["rows"] == 512
