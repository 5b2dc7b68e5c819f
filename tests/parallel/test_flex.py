"""FlexAttention in whole models gives plain attention's numbers, at every layout."""

from collections.abc import Callable

import pytest

from tests.parallel.cases import FLEX, FLEX_BF16, Case
from tests.parallel.jobs import Result

pytestmark = pytest.mark.ci


@pytest.mark.parametrize("case", [*FLEX, *FLEX_BF16], ids=lambda case: case.name)
def test_flex_attention_computes_what_plain_attention_does(
    case: Case, result: Callable[[Case], Result]
) -> None:
    """To 1e-6 in float32; bf16 has 8 bits: its step is 0.004, and layers add up.

    Outputs, of which some are near 0, beside the largest of them.
    """
    bound = 1e-6 if case.precision == "fp32" else 0.02
    found = result(case)
    assert len(found["plain"]) == len(found["flex"]) == 3
    for plain, flex in zip(found["plain"], found["flex"], strict=True):
        assert flex["weight"] == plain["weight"]
        for name in ("loss", "grad_norm"):
            assert flex[name] == pytest.approx(plain[name], rel=bound), name
        largest = max(map(abs, plain["outputs"]))
        assert flex["outputs"] == pytest.approx(plain["outputs"], rel=0, abs=bound * largest)
