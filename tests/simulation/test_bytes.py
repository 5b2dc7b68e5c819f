"""Simulated bytes are real bytes: the same steps, simulated and run by real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignctl.launch.job import Job, worker_environment

pytestmark = pytest.mark.ci

ROOT = Path(__file__).parents[2]

SMALL = [
    "model.num_layers=4",
    "model.hidden_size=512",
    "model.num_attention_heads=8",
    "model.num_query_groups=4",
    "model.ffn_hidden_size=1408",
    "model.vocab_size=16000",
    "batch.micro_batch_size=2",
    "batch.global_batch_size=8",
]
"""A Llama of 27.7M parameters."""


def layout(world: int, **parallel: Any) -> list[str]:
    return [
        f"launch.nproc_per_node={world}",
        *(f"parallel.{k}={v}".lower() for k, v in parallel.items()),
    ]


OVERLAP = {
    "distributed_optimizer": True,
    "overlap_grad_reduce": True,
    "overlap_param_gather": True,
}
FOUR = [
    ("sft", "tiny-llama", [*SMALL, *layout(4, tp=2, pp=2, sequence_parallel=True)]),
    ("sft", "tiny-llama", [*SMALL, *layout(4, tp=2, pp=1, distributed_optimizer=True)]),
    ("dpo", "tiny-llama", [*SMALL, *layout(4, tp=1, pp=2), "precision=bf16"]),
    ("dpo", "tiny-llama", [*SMALL, *layout(4, tp=1, pp=2), "precision=fp16"]),
    ("reward", "tiny-llama", [*SMALL, *layout(4, tp=1, pp=4, recompute="full")]),
    ("sft", "tiny-bloom", [*layout(4, tp=2, pp=1), "precision=bf16"]),
]
TWO = [
    ("sft", "tiny-llama-gqa", layout(2, tp=2, pp=1, sequence_parallel=False)),
    ("sft", "tiny-llama-gqa", [*layout(2, tp=2, pp=1), "precision=bf16"]),
    ("sft", "tiny-bloom", layout(2, tp=1, pp=2)),
    ("sft", "tiny-bloom", [*layout(2, tp=2, pp=1, logits_chunk_size=100), "precision=bf16"]),
    ("reward", "tiny-llama", layout(2, tp=1, pp=1, distributed_optimizer=True)),
    ("sft", "tiny-llama", [*layout(2, tp=1, pp=1, **OVERLAP), "kernels.activation=fused"]),
    ("dpo", "tiny-llama-gqa", [*layout(2, tp=2, pp=1), "batch.share_prompts=true"]),
    ("reward", "tiny-bloom", [*layout(2, tp=2, pp=1), "batch.share_prompts=true"]),
]


def run(cases: list[Any], world: int, tmp_path: Path) -> tuple[list[Any], list[Any]]:
    """Real rows (of each case: of each rank) and simulated ones."""
    results = tmp_path / "results.json"
    environment = os.environ | dict(worker_environment(2, os.environ)) | {"RESULTS": str(results)}
    job = Job("tests.simulation.real_bytes", (json.dumps(cases),), nproc=world, master_port=0)
    simulation = ["tests.simulation.simulated_bytes", json.dumps(cases), "cpu"]
    for command in (job.command(), [sys.executable, "-m", *simulation]):
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=540
        )
        assert done.returncode == 0, done.stderr[-4000:]
    simulated = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(results.read_text()), simulated


@pytest.mark.parametrize(
    ("cases", "world"), [(TWO, 2), pytest.param(FOUR, 4, marks=pytest.mark.slow)]
)
def test_simulated_bytes_are_those_of_a_real_step(
    cases: list[Any], world: int, tmp_path: Path
) -> None:
    """Weights, gradients and optimizer exactly; the peak of activations within 3 %."""
    real, simulated = run(cases, world, tmp_path)
    for case, rows, found in zip(cases, real, simulated, strict=True):
        for number, rank in zip(found["numbers"], found["simulated"]["ranks"], strict=True):
            row = rows[number]
            model = rank["models"]["model"]
            assert {name: row[name] for name in model} == model, case
            peak = rank["phases"]["step"]["activations"]
            assert peak == pytest.approx(row["activations"], rel=0.03), case
