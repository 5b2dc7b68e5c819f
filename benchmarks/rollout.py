"""The rollout: how fast weights reach vLLM, and how fast it samples.

    python benchmarks/rollout.py                          # four minutes on two cores
    python benchmarks/rollout.py --layers 12 --width 768

Megatron and vLLM live in the same processes, as in training. A push is timed beside a plain copy of
the same bytes from memory to memory; sampling is timed as tokens of completions per second, over
all ranks, once everything is warm. Nothing is asserted.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAYOUTS = ((1, 1, 1, 1), (2, 1, 1, 1), (2, 2, 1, 1), (2, 1, 2, 2), (2, 2, 1, 2))
"""Ranks, the trainer's tp and pp, the rollout's tp."""
REPEATS = 5
PROMPT, NEW, NUM_PROMPTS, GROUP = 32, 96, 8, 8
VOCAB_SIZE = 8192


def main() -> None:
    """Run every layout in a job of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    options = parser.parse_args()
    print(
        f"a Llama of {options.layers} layers, width {options.width}, fp32, {PROMPT} + {NEW} tokens"
    )
    head = ("ranks", "trainer", "rollout", "MB", "copy s", "push s", "ratio", "verified s", "tok/s")
    print(("{:>7} " + "{:>10} " * 8).format(*head))
    for world, tp, pp, rollout_tp in LAYOUTS:
        with tempfile.TemporaryDirectory(prefix="alignctl-rollout-bench-") as name:
            found = _run(Path(name), world, [tp, pp, rollout_tp, options.layers, options.width])
        row = (f"{found['mb']:.0f}", f"{found['copy']:.3f}", f"{found['push']:.3f}")
        ratio, verified = found["push"] / found["copy"], found["verified"]
        rest = (f"{ratio:.2f}", f"{verified:.3f}", f"{found['tokens']:.0f}")
        cells = (world, f"tp{tp} pp{pp}", f"tp{rollout_tp}", *row, *rest)
        print(("{:>7} " + "{:>10} " * 8).format(*cells), flush=True)


def _run(folder: Path, world: int, numbers: list[int]) -> dict[str, float]:
    from alignctl.launch.job import Job

    results = folder / "results.json"
    job = Job("benchmarks.rollout", (str(results), *map(str, numbers)), nproc=world, master_port=0)
    done = subprocess.run(
        job.command(),
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr[-4000:])
    found: dict[str, float] = json.loads(results.read_text())
    return found


def work(results: Path, tp: int, pp: int, rollout_tp: int, layers: int, width: int) -> None:
    """Do the work of every rank."""
    import numpy as np
    import torch
    import torch.distributed as dist

    from alignctl.config.rollout import Rollout as Settings
    from alignctl.config.sections import Model, Parallel
    from alignctl.engines.megatron.engine import MegatronEngine
    from alignctl.engines.megatron.groups import initialize
    from alignctl.engines.megatron.weights import hf_weights
    from alignctl.models import llama2
    from alignctl.rollouts.samples import Request, Sampling
    from alignctl.rollouts.vllm import Rollout

    parallel = Parallel(tp=tp, pp=pp)
    initialize([parallel], seed=1, timeout_minutes=5)
    model = Model(
        family="llama2",
        num_layers=layers,
        hidden_size=width,
        num_attention_heads=width // 64,
        num_query_groups=width // 64,
        ffn_hidden_size=8 * width // 3 // 64 * 64,
        vocab_size=VOCAB_SIZE,
        max_position_embeddings=256,
        rotary_base=10000.0,
        tie_embeddings=False,
    )
    engine = MegatronEngine(model, parallel, precision="fp32", seq_length=256, optimizer=None)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in engine.model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)

    def timed(act: Callable[[], object]) -> float:
        seconds = []
        for _ in range(REPEATS + 1):
            dist.barrier()
            start = time.perf_counter()
            act()
            dist.barrier()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[1:])

    whole = [(tensor.clone(), torch.empty_like(tensor)) for _, tensor in hf_weights(engine)]
    found = {"mb": sum(tensor.nbytes for tensor, _ in whole) / 1e6}
    found["copy"] = timed(lambda: [target.copy_(source) for source, target in whole])
    whole.clear()
    for name, is_verified in (("verified", True), ("push", False)):
        rollout = Rollout(
            llama2.to_hf(model),
            Settings(tp=rollout_tp, max_new_tokens=NEW, verify_push=is_verified),
            max_model_len=256,
            precision="fp32",
            seed=0,
            timeout_minutes=5,
        )
        found[name] = timed(lambda: rollout.load_weights(hf_weights(engine)))  # noqa: B023
        if name == "verified":
            rollout.close()
    random = np.random.default_rng(0)
    requests = [
        Request(prompt, seed=GROUP * group + member, group=group)
        for group in range(NUM_PROMPTS)
        for prompt in [random.integers(3, VOCAB_SIZE, PROMPT, dtype=np.int32)]
        for member in range(GROUP)
    ]
    sampling = Sampling(max_new_tokens=NEW, stop_token_ids=())
    seconds = timed(lambda: rollout.generate(requests, sampling))
    found["tokens"] = len(requests) * NEW / seconds
    if dist.get_rank() == 0:
        results.write_text(json.dumps(found))
    rollout.close()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    if "RANK" in os.environ:
        work(Path(sys.argv[1]), *map(int, sys.argv[2:]))
    else:
        main()
