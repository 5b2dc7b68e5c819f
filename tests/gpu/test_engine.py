"""The engine on a GPU beside the engine on the CPU, by whose numbers all other tests are."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import jobs
from tests.gpu.conftest import skip_without
from tests.simulation.test_bytes import ROOT

CASES = [
    (family, precision, variant)
    for family in jobs.FAMILIES
    for precision in jobs.PRECISIONS
    for variant in jobs.KERNELS
]
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
"""Relative; bf16 has 8 bits, whose noise of 0.4 % adds up over layers and tokens."""


def result(measured: Any, place: str, name: str) -> dict[str, Any]:
    """What a part measured in a place; what it raised fails the test."""
    found: dict[str, Any] = measured(place)[name]
    assert "error" not in found, found["error"]
    return found


@pytest.mark.parametrize(("family", "precision", "variant"), CASES)
def test_numbers_are_those_of_the_cpu(
    family: str, precision: str, variant: str, place: str, measured: Any
) -> None:
    """Log-probabilities of documents, apart and with shared prompts, losses, gradient norms.

    Beside the CPU's plain operators in fp32, whichever kernels compute them, and all logits at
    once.
    """
    if variant not in jobs.usable(family, place):
        pytest.skip(f"{variant} does not compute {family} on {place}")
    if variant == "transformer_engine":
        skip_without(place, "transformer_engine")
    found = result(measured, place, f"train {family} {precision} {variant}")
    expected = result(measured, "cpu", f"train {family} fp32 plain")
    tolerance = TOLERANCE[precision]
    for key in ("loss", "grad_norm"):
        assert found[key] == pytest.approx(expected[key], rel=tolerance), key
    assert len(found["logprobs"]) == 3
    for ours, theirs in zip(found["logprobs"], expected["logprobs"], strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("family", jobs.FAMILIES)
def test_offload_gives_memory_back_and_takes_it_again(
    family: str, place: str, measured: Any
) -> None:
    found = result(measured, place, f"offload {family}")
    assert found["said"] > 0
    assert found["freed"] == pytest.approx(found["said"], rel=0.01)
    assert found["back"] == 0
    engine, untouched = found["losses"]
    assert engine == untouched


@pytest.mark.parametrize("name", jobs.MEMORY)
def test_simulated_bytes_are_the_allocators(name: str, place: str, measured: Any) -> None:
    """Weights, gradients and optimizer exactly; what a step takes beyond them within 5 %."""
    found = result(measured, place, f"memory {name}")
    module = "tests.simulation.simulated_bytes"
    kind = {"cuda": "gpu", "cpu": "cpu"}[place]
    done = subprocess.run(
        [sys.executable, "-m", module, json.dumps([jobs.memory_case(name, place)]), kind],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    (rank,) = json.loads(line)["simulated"]["ranks"]
    held = rank["models"]["model"]
    assert {key: found[key] for key in held} == held
    assert rank["phases"]["step"]["activations"] == pytest.approx(found["activations"], rel=0.05)


@pytest.mark.parametrize("family", jobs.FAMILIES)
def test_the_host_waits_as_often_as_the_sanitizer_says(
    family: str, place: str, measured: Any, models: Path
) -> None:
    """On a CPU the profiler sees no wait, and the sanitizer those that there would be."""
    found = result(measured, place, f"waits {family}")
    name = f"waits {family}"
    expected = jobs.run(models, "sanitizer", {name: ["waits", family]})[name]
    assert "error" not in expected, expected["error"]
    assert expected["count"] > 0
    budget = expected["count"] if place == "cuda" else 0
    assert found["count"] == budget, expected["lines"]
