"""What rlhf, online-dpo and grpo teach the demo's policy, for several seeds.

    make demo
    python benchmarks/learning.py --seeds 1 2 3

Each run is the real command with the preset tiny-llama, from the policy, the reward model and the
prompts that the demo has made; the seed decides the order of the prompts, the samples and the mini
batches. Accuracy is that of greedy answers to prompts that no training row holds, before and after;
the run folders keep every episode's numbers in metrics.jsonl.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

STAGES = ("rlhf", "online-dpo", "grpo")


def main() -> int:
    """Run them all and print a table; return the exit code of the first that fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--demo", type=Path, default=Path("demo"), help="what `make demo` made")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--output", type=Path, default=Path("runs/learning"), help="run folders")
    options = parser.parse_args()
    if not (options.demo / "tiny-llama" / "reward" / "result.json").is_file():
        print(f"{options.demo} has no finished demo: run `make demo` first", file=sys.stderr)
        return 0  # `make bench` goes on with the others
    table = Table("stage", "seed", title="Right answers to held-out prompts")
    for name in ("before", "after", "KL at the end", "seconds an episode"):
        table.add_column(name, justify="right")
    for stage in options.stages:
        for seed in options.seeds:
            output = options.output / f"{stage}-{seed}"
            if code := learn(stage, seed, options.demo, output):
                return code
            table.add_row(stage, str(seed), *outcome(output))
    Console(width=100).print(table)
    return 0


def learn(stage: str, seed: int, demo: Path, output: Path) -> int:
    """Start one run; one that is finished already is not repeated."""
    model = demo / "tiny-llama"
    reward = () if stage == "grpo" else ("--reward-load", str(model / "reward"))
    command = [
        str(Path(sys.executable).with_name("alignctl")),
        *(stage, "--preset", "tiny-llama", "--load", str(model / "sft"), *reward),
        *("--data", str(demo / "data" / "prompts"), "--output", str(output)),
        *(f"train.seed={seed}", "train.log_interval=1", "experience.shown=0"),
    ]
    return subprocess.run(command, check=False).returncode


def outcome(output: Path) -> tuple[str, str, str, str]:
    """Read accuracy before and after, KL and time, from a run's metrics."""
    lines = (output / "metrics.jsonl").read_text("utf-8").splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    validations = [row["accuracy"] for row in rows if row["kind"] == "validation"]
    train = [row for row in rows if row["kind"] == "train"]
    seconds = (train[-1]["time"] - train[0]["time"]) / max(1, len(train) - 1)
    kl = train[-1].get("kl")
    return (
        f"{validations[0]:.1%}",
        f"{validations[-1]:.1%}",
        "-" if kl is None else f"{kl:.2f}",
        f"{seconds:.2f}",
    )


if __name__ == "__main__":
    sys.exit(main())
