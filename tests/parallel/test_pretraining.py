"""Pretraining is the same at every layout, and that of a plain loop over transformers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.parallel import documents
from tests.parallel.cases import PRETRAINING, Case
from tests.parallel.jobs import Result
from tests.parallel.plain_pretraining import BATCH, SEQ_LENGTH

pytestmark = pytest.mark.ci


@pytest.mark.parametrize("case", PRETRAINING, ids=lambda case: case.name)
def test_twenty_steps_follow_transformers_on_megatrons_samples(
    case: Case, models: Path, result: Callable[[Case], Result]
) -> None:
    """The samples come from Megatron's own builder, here and there by different code."""
    found = result(case)
    plain = json.loads((models / case.model / f"{case.kind}.json").read_text())
    assert len(plain["loss"]) == documents.FOLLOW_STEPS
    assert found["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    assert found["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-3)
    if case.kind == "pretrain":
        assert found["weight"] == [BATCH * SEQ_LENGTH] * documents.FOLLOW_STEPS
