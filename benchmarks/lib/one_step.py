"""A training step of the benchmarks' model by itself: what it takes of processor and memory.

One process of one thread has one such step, because memory that a process held stays with it.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from alignctl.algorithms.cross_entropy import CrossEntropy
from alignctl.config.sections import Model, Optimizer, Parallel
from alignctl.data.batch import TokenBatch
from alignctl.engines.megatron import cpu as megatron_cpu
from benchmarks.lib.workload import MODEL


def measure_in_a_process(script: str, cell: dict[str, Any]) -> dict[str, float]:
    """Run `script --cell CELL`, which prints what `measure_step` returns, in a new process."""
    command = [sys.executable, script, "--cell", json.dumps(cell)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_step(
    micro_batches: Sequence[TokenBatch], *, seq_length: int, steps: int
) -> dict[str, float]:
    """Take steps of AdamW over the same micro batches, the first of them not on the clock.

    Args:
        micro_batches: Of each step.
        seq_length: The longest document.
        steps: On the clock.

    Returns:
        `tokens` that are computed, `seconds` of the processor (the least of the steps), and `gib`,
        what the peak is above what the process held before the first step.
    """
    torch.set_num_threads(1)
    megatron_cpu.load()
    from alignctl.engines.megatron import groups as megatron_groups
    from alignctl.engines.megatron.engine import MegatronEngine
    from alignctl.rollouts import alone

    with alone.process_group():
        megatron_cpu.install()
        megatron_groups.lay_out([Parallel()], seed=1, timeout_minutes=10)
        engine = MegatronEngine(
            Model.model_validate({"family": "llama2", **MODEL}),
            Parallel(),
            precision="fp32",
            seq_length=seq_length,
            optimizer=Optimizer(lr=1e-3),
        )
        for parameter in engine.model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        engine.create_optimizer()
        before, seconds = _resident(), []
        for _ in range(1 + steps):
            started = time.process_time()
            engine.train_step(micro_batches, CrossEntropy(), learning_rate=1e-3)
            seconds.append(time.process_time() - started)
        megatron_groups.leave()
    gib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 2**30
    tokens = sum(batch.num_tokens for batch in micro_batches)
    return {"tokens": tokens, "seconds": min(seconds[1:]), "gib": gib}


def _resident() -> int:
    """Count the bytes that this process has in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()
