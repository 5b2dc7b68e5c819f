"""Logits in chunks: simulated and computed memory of a step, and what it costs, as Markdown.

python benchmarks/logits_chunks.py [CHUNK ...]

A model of the size of Llama 3 8B, whose vocabulary has 128,256 rows, learns from every token of a
sequence on 8 GPUs of 80 GiB, TP 1 x DP 8, layers computed again. `more` is what the backward pass
computes once more of logits, as a share of the step's compute by `plan`'s estimate.
"""

import sys
from pathlib import Path

from alignctl.config.presets.load import STAGES, resolve
from alignctl.planning.devices import device
from alignctl.planning.layouts import look_at
from alignctl.planning.memory import GIB
from alignctl.stages.shared.simulation import simulate

RUN = [
    "model.num_query_groups=8",
    "model.ffn_hidden_size=14336",
    "model.vocab_size=128256",
    "model.rotary_base=500000.0",
    "model.max_position_embeddings=131072",
    "parallel.tp=1",
    "parallel.distributed_optimizer=true",
    "parallel.recompute=full",
    "batch.micro_batch_size=1",
    "batch.global_batch_size=8",
]
CHUNKS, LENGTHS = ("null", "4096", "1024"), (8192, 32768)


def row(length: int, chunk: str) -> tuple[str, float]:
    """Make a line of the table, with the seconds of compute instead of its last cell."""
    overrides = [*RUN, f"batch.seq_length={length}", f"parallel.logits_chunk_size={chunk}"]
    config = resolve(STAGES["sft"], "llama2-7b", {"output": Path("runs")}, overrides)
    (rank,) = simulate(config).ranks
    plan = look_at(config, device("h100"), 80.0)
    step = rank.phases["step"]
    sizes = (step.logits / GIB, step.activations / GIB, step.peak / GIB, plan.report.peak_gib)
    cells = " | ".join(f"{size:.1f}" for size in sizes)
    return f"| {length:,} | {chunk} | {cells}", plan.cost.compute


def main(chunks: tuple[str, ...]) -> None:
    """Print a line for each length and chunk size; null: all logits at once."""
    print("| tokens | `logits_chunk_size` | logits | activations | peak GiB | `plan` | more |")
    print("|---" * 7 + "|")
    for length in LENGTHS:
        _, whole = row(length, "null")
        for chunk in chunks:
            cells, compute = row(length, chunk)
            print(f"{cells} | {compute / whole - 1:.1%} |", flush=True)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or CHUNKS)
