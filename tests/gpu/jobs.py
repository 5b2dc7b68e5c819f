"""The job of the GPU tests: parts, each a measurement, run one after the other by torchrun.

    results = jobs.run(folder, "cuda", parts)

An engine forks on the GPU when it is imported, so the CPU's numbers come from a job of their own,
which is not shown the GPU.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import torch
from transformers import BloomConfig, BloomForCausalLM, LlamaConfig, LlamaForCausalLM

from alignctl.config.sections import Parallel
from alignctl.launch.job import Job, worker_environment
from tests.parallel import documents

ROOT = Path(__file__).parents[2]
FAMILIES = ("llama", "bloom")
PRECISIONS = ("fp32", "bf16")
KERNELS: dict[str, dict[str, str]] = {
    "plain": {"attention": "plain", "activation": "plain"},
    "flex": {"attention": "flex"},
    "transformer_engine": {"attention": "transformer_engine"},
    "fused": {"attention": "plain", "activation": "fused"},
    "chunks": {"attention": "plain", "activation": "plain"},
}
"""What computes a model in each variant of it, beside what is so by default."""
PARALLEL = {"chunks": {"logits_chunk_size": 16}}
"""And how it is laid out."""
_ALONE = ["launch.nproc_per_node=1", "parallel.tp=1", "parallel.pp=1"]
_WIDE = [
    "model.num_layers=4",
    "model.hidden_size=512",
    "model.num_attention_heads=8",
    "model.num_query_groups=4",
    "model.ffn_hidden_size=1408",
    "model.vocab_size=16000",
    "batch.micro_batch_size=2",
    "batch.global_batch_size=8",
]
"""A Llama of 27.7M parameters, for a GPU: what a kernel needs for itself does not count there."""
MEMORY = {
    "sft fp32": ("sft", "precision=fp32"),
    "dpo bf16": ("dpo", "precision=bf16"),
}
"""Steps whose bytes are simulated and measured: a stage and a precision."""


def memory_case(name: str, place: str) -> list[Any]:
    """The stage, the preset and its overrides: small where the CPU takes the step."""
    stage, precision = MEMORY[name]
    wide = _WIDE if place == "cuda" else []
    return [stage, "tiny-llama-gqa", [*_ALONE, *wide, precision]]


def write_models(folder: Path) -> Path:
    """Writes NAME/hf of each family; heads are as wide as every kernel wants them."""
    for name in FAMILIES:
        torch.manual_seed(sum(name.encode()))
        shape = {"vocab_size": documents.VOCAB_SIZE, "initializer_range": 0.05}
        model: Any
        if name == "bloom":
            model = BloomForCausalLM(BloomConfig(n_layer=2, hidden_size=128, n_head=4, **shape))
        else:
            model = LlamaForCausalLM(
                LlamaConfig(
                    num_hidden_layers=2,
                    hidden_size=128,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                    intermediate_size=256,
                    max_position_embeddings=documents.SEQ_LENGTH,
                    tie_word_embeddings=False,
                    **shape,
                )
            )
        model.save_pretrained(folder / name / "hf")
    return folder


def all_parts(place: str) -> dict[str, list[Any]]:
    """What is measured on one device, by name."""
    parts: dict[str, list[Any]] = {}
    for family in FAMILIES:
        for precision in PRECISIONS:
            for variant in usable(family, place):
                name = f"train {family} {precision} {variant}"
                parts[name] = ["train", family, precision, variant]
        parts[f"offload {family}"] = ["offload", family]
        parts[f"waits {family}"] = ["waits", family]
    return parts | {f"memory {name}": ["memory", *memory_case(name, place)] for name in MEMORY}


def usable(family: str, place: str) -> tuple[str, ...]:
    """The variants that a place can compute: kernels of attention have no gradients on a CPU."""
    needs_gpu = () if place == "cuda" else ("flex", "transformer_engine")
    unknown = () if family == "llama" else ("transformer_engine",)
    return tuple(name for name in KERNELS if name not in {*needs_gpu, *unknown})


def run(
    folder: Path,
    place: str,
    parts: dict[str, list[Any]],
    parallel: Parallel | None = None,
    world: int = 1,
) -> dict[str, Any]:
    """Runs parts in a place; what each of them measured, or "error" and its traceback.

    Args:
        folder: The models.
        place: cuda, cpu, or sanitizer: the CPU, on which waits for a GPU are counted.
        parts: By name, the function of `tests.gpu.rank` and its arguments.
        parallel: The layout.
        world: Ranks.
    """
    results = folder / f"results_{place}_{world}.json"
    environment = os.environ | dict(worker_environment(world, os.environ))
    environment["OMP_NUM_THREADS"] = "1"
    if place != "cuda":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    layout = (parallel or Parallel()).model_dump_json()
    words = (place, json.dumps(parts), layout, str(folder), str(results))
    job = Job("tests.gpu.rank", words, nproc=world, master_port=0)
    done = subprocess.run(
        job.command(), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=450
    )
    assert done.returncode == 0, done.stderr[-6000:]
    found: dict[str, Any] = json.loads(results.read_text())
    return found
