"""Every preset and stage steps and fits, and closed forms find the same memory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignctl.config.presets import library as presets
from alignctl.config.presets.load import STAGES

pytestmark = pytest.mark.ci

ROOT = Path(__file__).parents[2]
REAL = [name for name in presets.names() if not name.startswith("tiny")]
FAST: list[Any] = [("sft", "bloom-560m", []), ("grpo", "bloom-1b1", ["offload=true"])]
OWN = ["roles.reward.parallel.tp=1", "roles.value.parallel.pp=2", "roles.value.parallel.tp=1"]
"""Layouts that are not the policy's; ranks are of two kinds then, by the value model's stages."""


def simulated(cases: list[Any]) -> list[dict[str, Any]]:
    """What a process of its own finds on GPUs of 80 GiB, case by case."""
    module = "tests.simulation.simulated_bytes"
    done = subprocess.run(
        [sys.executable, "-m", module, json.dumps(cases), "gpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def check(cases: list[Any]) -> None:
    """Held bytes agree to 0.2 % (Megatron fills its buffers up), peaks to 5 %."""
    rows = simulated(cases)
    assert len(rows) == len(cases)
    for case, row in zip(cases, rows, strict=True):
        found, computed = row["simulated"], row["computed"]
        assert found["fits"], (case, found["verdict"])
        assert computed["peak_gib"] == pytest.approx(found["peak_gib"], rel=0.05), case
        for rank, other in zip(found["ranks"], computed["ranks"], strict=True):
            assert rank["models"].keys() == other["models"].keys()
            for role, model in rank["models"].items():
                assert other["models"][role] == pytest.approx(model, rel=2e-3), (case, role)
        assert row["resident_gib"] < 4, case


def test_a_few_presets_fit_as_computed() -> None:
    check(FAST)


def test_layouts_of_roles_take_what_is_computed() -> None:
    check([("rlhf", "bloom-1b1", ["parallel.tp=2", "offload=true", *OWN])])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", REAL)
def test_every_stage_of_a_preset_fits_as_computed(name: str) -> None:
    check([(stage, name, []) for stage in STAGES])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_adapters_take_what_is_computed() -> None:
    """With them the reference is the policy's base; the value model has some too."""
    check([(stage, "llama2-7b", ["lora.rank=16"]) for stage in ("sft", "rlhf", "online_dpo")])
    check([("sft", "llama2-7b", ["lora.rank=16", "lora.dropout=0.1"])])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-llama-gqa", "tiny-bloom"])
def test_every_stage_of_a_tiny_preset_steps(name: str) -> None:
    rows = simulated([(stage, name, []) for stage in STAGES])
    assert [row["simulated"]["fits"] for row in rows] == [True] * len(STAGES)
