"""Evaluation is the mean over tokens, however the documents are dealt."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.parallel.cases import EVALUATION, Case
from tests.parallel.jobs import Result

pytestmark = pytest.mark.ci


@pytest.mark.parametrize("case", EVALUATION, ids=lambda case: case.name)
def test_evaluation_is_the_token_weighted_mean_of_transformers(
    case: Case, models: Path, result: Callable[[Case], Result]
) -> None:
    """Seven documents of 3 to 41 tokens: batches are uneven, and some ranks end with fillers."""
    found = result(case)
    expected = json.loads((models / case.model / "evaluation.json").read_text())
    assert expected["token_accuracy"] > 0.1
    assert found == pytest.approx(expected, rel=1e-5)
