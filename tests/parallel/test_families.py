"""The families that are like Llama, beside transformers: logits, gradients, training, adapters."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.parallel.cases import (
    FAMILY_FOLLOWING,
    FAMILY_GRADIENTS,
    FAMILY_LOGITS,
    FAMILY_LORA,
    FAMILY_PLAIN_MEGATRON,
    Case,
)
from tests.parallel.jobs import Result

pytestmark = pytest.mark.ci


@pytest.mark.parametrize("case", FAMILY_LOGITS, ids=lambda case: case.name)
def test_logits_are_those_of_transformers(
    case: Case, family_result: Callable[[Case], Result]
) -> None:
    found = family_result(case)
    assert found["difference"] <= 1e-4
    assert found["largest"] > 1


@pytest.mark.parametrize("case", FAMILY_GRADIENTS, ids=lambda case: case.name)
def test_gradients_are_those_of_transformers(
    case: Case, family_result: Callable[[Case], Result]
) -> None:
    """Of every weight: biases of queries, and norms of which each rank sees its own heads."""
    found = family_result(case)
    assert found["missing"] == []
    assert found["worst"] <= 1e-4, found["where"]


@pytest.mark.parametrize("case", FAMILY_FOLLOWING, ids=lambda case: case.name)
def test_twenty_steps_follow_transformers_and_torch_adamw(
    case: Case, family_models: Path, family_result: Callable[[Case], Result]
) -> None:
    plain = json.loads((family_models / case.model / "follow.json").read_text())
    found = family_result(case)
    assert found["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    assert found["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("case", FAMILY_LORA, ids=lambda case: case.name)
def test_adapters_are_those_of_peft(case: Case, family_result: Callable[[Case], Result]) -> None:
    """Logits and gradients of adapters beside biases and norms, at numbers that are not zero."""
    found = family_result(case)
    assert found["logits"] <= 1e-4
    assert found["gradients"] <= 1e-4


@pytest.mark.parametrize("case", FAMILY_PLAIN_MEGATRON, ids=lambda case: case.name)
def test_megatron_itself_reads_a_converted_checkpoint(
    case: Case, family_result: Callable[[Case], Result]
) -> None:
    assert family_result(case)["difference"] <= 1e-4
