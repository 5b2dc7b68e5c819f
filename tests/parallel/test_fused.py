"""One function for an activation gives the numbers of torch's operators, at every layout."""

from collections.abc import Callable

import pytest

from tests.parallel.cases import FUSED, Case
from tests.parallel.jobs import Result

pytestmark = pytest.mark.ci


@pytest.mark.parametrize("case", FUSED, ids=lambda case: case.name)
def test_fused_activations_are_plain_ones(case: Case, result: Callable[[Case], Result]) -> None:
    """To 1e-6 in float32, steps and what follows from them; bf16 rounds at other places.

    Uncompiled it rounds every intermediate number to 8 bits, the backward pass more of them than
    torch's, which is one kernel for the slope of an activation.
    """
    bound = 1e-6 if case.precision == "fp32" else 5e-3
    found = result(case)
    for name, plain in found["plain"].items():
        assert found["fused"][name] == pytest.approx(plain, rel=bound), name
