"""A shared prompt computed once: seconds and memory of a training step, and the limit of both.

    python benchmarks/shared_prompts.py                       # a quarter of an hour of a core
    python benchmarks/shared_prompts.py --prompt 256 --group 8 --answer 128

The model of sft.py on one process of one thread learns a group of answers to one prompt, with the
prompt computed for each and once. Every cell of the table is measured by a process of its own. The
limit is the ratio of the tokens: what a step would gain if all of it were work per token. Nothing
is asserted.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.lib.race import table
from benchmarks.lib.workload import MODEL, VOCAB_SIZE

PROMPTS, GROUPS, ANSWER = (64, 256, 1024), (2, 8, 16), 128


def main() -> None:
    """Measure each cell twice, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--prompt", type=int, nargs="+", default=PROMPTS, help="tokens of a prompt")
    parser.add_argument("--group", type=int, nargs="+", default=GROUPS, help="answers to it")
    parser.add_argument("--answer", type=int, default=ANSWER, help="tokens of each")
    parser.add_argument("--steps", type=int, default=2, help="on the clock, after another one")
    parser.add_argument("--cell", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell is not None:
        print(json.dumps(measure(**options.cell, steps=options.steps)))
        return
    rows = [["prompt", "answers", "tokens", "limit", "core s", "once", "ratio", "GiB", "once"]]
    for prompt in options.prompt:
        for group in options.group:
            cell = {"prompt": prompt, "group": group, "answer": options.answer}
            apart, once = (
                _in_a_process({**cell, "share_prompts": share_prompts}, options.steps)
                for share_prompts in (False, True)
            )
            rows.append(
                [
                    str(prompt),
                    f"{group} x {options.answer}",
                    f"{apart['tokens']:,}",
                    f"{apart['tokens'] / once['tokens']:.2f}",
                    f"{apart['seconds']:.2f}",
                    f"{once['seconds']:.2f}",
                    f"{apart['seconds'] / once['seconds']:.2f}",
                    f"{apart['gib']:.2f}",
                    f"{once['gib']:.2f}",
                ]
            )
            print(f"  {' '.join(rows[-1])}", flush=True)
    print(f"\n{table(rows)}")


def _in_a_process(cell: dict[str, Any], steps: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--steps", str(steps), "--cell", json.dumps(cell)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(
    *, prompt: int, group: int, answer: int, share_prompts: bool, steps: int
) -> dict[str, float]:
    """Take steps over one micro batch of a group; tokens, processor seconds a step, peak memory.

    Returns:
        `tokens` that are computed, `seconds` of the processor (the least of the steps), and `gib`,
        what the peak is above what the process held before the first step.
    """
    import torch

    from alignctl.algorithms.cross_entropy import CrossEntropy
    from alignctl.config.sections import Model, Optimizer, Parallel
    from alignctl.data.batch import TokenBatch
    from alignctl.engines.megatron import cpu as megatron_cpu

    torch.set_num_threads(1)
    megatron_cpu.load()
    from alignctl.engines.megatron import groups as megatron_groups
    from alignctl.engines.megatron.engine import MegatronEngine
    from alignctl.rollouts import alone

    documents = make_group(prompt, group, answer)
    batch = TokenBatch.sharing([documents] if share_prompts else [[each] for each in documents])
    with alone.process_group():
        megatron_cpu.install()
        megatron_groups.lay_out(Parallel(), seed=1, timeout_minutes=10)
        engine = MegatronEngine(
            Model.model_validate({"family": "llama2", **MODEL}),
            Parallel(),
            precision="fp32",
            seq_length=prompt + answer,
            optimizer=Optimizer(lr=1e-3),
        )
        for parameter in engine.model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        engine.create_optimizer()
        before, seconds = _resident(), []
        for _ in range(1 + steps):
            started = time.process_time()
            engine.train_step([batch], CrossEntropy(), learning_rate=1e-3)
            seconds.append(time.process_time() - started)
        megatron_groups.leave()
    gib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 2**30
    return {"tokens": batch.num_tokens, "seconds": min(seconds[1:]), "gib": gib}


def make_group(prompt: int, group: int, answer: int) -> list[Any]:
    """Make documents of one prompt of random tokens and different answers."""
    from alignctl.data.batch import Document

    rng = np.random.default_rng(1)
    question = rng.integers(0, VOCAB_SIZE, prompt, dtype=np.int32)
    return [
        Document(
            np.concatenate([question, rng.integers(0, VOCAB_SIZE, answer, dtype=np.int32)]),
            np.arange(prompt + answer) >= prompt,
            number,
        )
        for number in range(group)
    ]


def _resident() -> int:
    """Count the bytes that this process has in memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
