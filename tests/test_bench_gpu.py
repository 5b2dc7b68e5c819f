"""The benchmark of a GPU, on the CPU with a tiny model: every contender and method has a row."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = str(ROOT / "benchmarks/gpu.py")


def test_every_kernel_and_logits_in_chunks_are_compared() -> None:
    variants = import_module("benchmarks.lib.gpu_alignctl").variants()
    on_gpu = {"attention=flex", "attention=transformer_engine"}
    kernels = {"attention=plain", "activation=plain", "activation=fused"}
    assert set(variants) - on_gpu == {"", "logits_chunk_size=1024", *kernels}


@pytest.mark.ci
def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("0 run: torch sees no GPU here")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama-1b", "bloom-1b1"])
def test_every_contender_takes_steps_of_every_method(model: str, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--tiny", "--model", model, "--json", str(results)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(results.read_text())
    assert [row for row in rows if "error" in row] == []
    for contender in ("alignctl", "transformers", "trl"):
        methods = {row["case"].split()[0] for row in rows if row["contender"] == contender}
        assert methods == {"sft", "dpo", "grpo"}
    assert all(row["tokens_per_second"] > 0 for row in rows)
