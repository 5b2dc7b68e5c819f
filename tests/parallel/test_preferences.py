"""The course of DPO is the same at every layout and however prompts are grouped."""

from collections.abc import Callable

import pytest

from tests.parallel.cases import DPO, DPO_BASELINE, Case
from tests.parallel.jobs import Result
from tests.parallel.preferences import PROMPTS, STEPS

pytestmark = pytest.mark.ci


@pytest.mark.parametrize("case", DPO, ids=lambda case: case.name)
def test_loss_and_gradient_norm_do_not_depend_on_the_layout(
    case: Case, result: Callable[[Case], Result]
) -> None:
    """Three AdamW steps over four prompts, one of them with a tie among three answers.

    The margin is near 0 and the difference of rewards near 20, so it is compared with those.
    """
    found, baseline = result(case), result(DPO_BASELINE)
    assert found["weight"] == baseline["weight"] == [PROMPTS] * STEPS
    assert found["loss"] == pytest.approx(baseline["loss"], rel=1e-5)
    assert found["grad_norm"] == pytest.approx(baseline["grad_norm"], rel=1e-5)
    assert found["margin"] == pytest.approx(baseline["margin"], abs=20 * 1e-6)
