"""Logits of transformers and of our Megatron models, seven documents in one batch, fp32."""

from collections.abc import Callable

import pytest

from tests.parallel.cases import LOGITS, PLAIN_MEGATRON, Case
from tests.parallel.jobs import Result

pytestmark = pytest.mark.ci


@pytest.mark.parametrize("case", LOGITS, ids=lambda case: case.name)
def test_logits_are_those_of_transformers(case: Case, result: Callable[[Case], Result]) -> None:
    found = result(case)
    assert found["difference"] <= 1e-4
    assert found["largest"] > 1


@pytest.mark.parametrize("case", PLAIN_MEGATRON, ids=lambda case: case.name)
def test_megatron_itself_reads_a_converted_checkpoint(
    case: Case, result: Callable[[Case], Result]
) -> None:
    """A GPTModel with Megatron's own layers and attention, filled by Megatron's own reader."""
    assert result(case)["difference"] <= 1e-4
