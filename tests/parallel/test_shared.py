"""A prompt computed once gives the numbers of a prompt computed for each of its answers.

So do micro batches that are laid by tokens.
"""

from collections.abc import Callable
from typing import Any

import pytest

from tests.parallel.cases import SHARED, SHARED_BF16, Case
from tests.parallel.jobs import Result
from tests.parallel.shared import assert_equal

pytestmark = pytest.mark.ci


def parts(found: Result) -> dict[str, tuple[dict[str, Any], ...]]:
    """What was found with prompts computed for each answer and in the other ways, for each loss."""
    return {name: tuple(each) for name, each in found.items() if "gradients" not in name}


def worst_gradient(found: Result) -> float:
    values: list[float] = [value for name, value in found.items() if "gradients" in name]
    return max(values)


@pytest.mark.parametrize("case", SHARED, ids=lambda case: case.name)
def test_nothing_is_different_in_float32(case: Case, result: Callable[[Case], Result]) -> None:
    """Of gradients the differences beside the largest element."""
    found = result(case)
    assert len(parts(found)) == 2
    for apart, by_number, by_tokens in parts(found).values():
        assert_equal(apart, by_number)
        assert_equal(apart, by_tokens)
    assert worst_gradient(found) < 2e-6


@pytest.mark.parametrize("case", SHARED_BF16, ids=lambda case: case.name)
def test_bf16_differs_by_its_own_noise(case: Case, result: Callable[[Case], Result]) -> None:
    """It has 8 bits: its step is 0.004, and layers add up."""
    found = result(case)
    for apart, together, _ in parts(found).values():
        for name in ("loss", "grad_norm"):
            assert together[name] == pytest.approx(apart[name], rel=0.02), name
        outputs, largest = apart["outputs"], max(map(abs, apart["outputs"]))
        assert together["outputs"] == pytest.approx(outputs, rel=0, abs=0.02 * largest)
