"""Log-probabilities from a chunk of logits at a time are those from all logits, at every layout."""

from collections.abc import Callable

import pytest

from tests.parallel.cases import CHUNKED_LOGITS, WHOLE_LOGITS, Case
from tests.parallel.jobs import Result

pytestmark = pytest.mark.ci

PAIRS = dict(zip(CHUNKED_LOGITS, WHOLE_LOGITS, strict=True))


def of_kind(kind: str, precision: str = "fp32") -> list[Case]:
    return [case for case in PAIRS if case.kind == kind and case.precision == precision]


@pytest.mark.parametrize(
    "case", [*of_kind("train"), *of_kind("lora_dpo")], ids=lambda case: case.name
)
def test_steps_are_those_of_whole_logits(case: Case, result: Callable[[Case], Result]) -> None:
    """The output layer its own, tied on one stage and on two, and frozen beside adapters."""
    found, whole = result(case), result(PAIRS[case])
    assert found["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert found["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-6)


@pytest.mark.parametrize("case", of_kind("policy"), ids=lambda case: case.name)
def test_entropies_temperatures_and_scoring_are_those_of_whole_logits(
    case: Case, result: Callable[[Case], Result]
) -> None:
    """Of a policy; log-probabilities are computed without gradients, losses with entropies."""
    found, whole = result(case), result(PAIRS[case])
    assert found["logprobs"] == pytest.approx(whole["logprobs"], rel=1e-6, abs=1e-6)
    for name in ("start", "ppo", "gspo", "cispo"):
        assert found[name]["entropy"] == pytest.approx(whole[name]["entropy"], rel=1e-6)
        for key in ("loss", "grad_norm"):
            assert found[name][key] == pytest.approx(whole[name][key], rel=2e-6, abs=1e-7)


@pytest.mark.parametrize("case", of_kind("train", "bf16"), ids=lambda case: case.name)
def test_bf16_chunks_follow_bf16(case: Case, result: Callable[[Case], Result]) -> None:
    """Gradients of chunks are rounded to bf16 each, and added in float32."""
    found, whole = result(case), result(PAIRS[case])
    assert found["loss"][0] == pytest.approx(whole["loss"][0], rel=1e-6)
    assert found["grad_norm"][0] == pytest.approx(whole["grad_norm"][0], rel=1e-4)
