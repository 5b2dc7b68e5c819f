"""What TRL's trainers of the benchmarks share: their flags, their settings, a line per step."""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback

from benchmarks.lib.workload import OPTIMIZER, SEED


def flags(description: str | None) -> argparse.ArgumentParser:
    """Make the parser of the flags of one rank's program."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seq-length", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--micro-batch", type=int, required=True)
    parser.add_argument("--accumulation", type=int, required=True)
    return parser


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """List the settings of every trainer."""
    return {
        "output_dir": str(options.output / "trl"),
        "max_length": options.seq_length,
        "per_device_train_batch_size": options.micro_batch,
        "gradient_accumulation_steps": options.accumulation,
        "max_steps": options.steps,
        "seed": SEED,
        "optim": "adamw_torch_fused",
        "learning_rate": OPTIMIZER["lr"],
        "weight_decay": OPTIMIZER["weight_decay"],
        "adam_beta1": OPTIMIZER["beta1"],
        "adam_beta2": OPTIMIZER["beta2"],
        "adam_epsilon": OPTIMIZER["eps"],
        "max_grad_norm": OPTIMIZER["clip_grad"],
        "lr_scheduler_type": "constant",
        # TRL's own defaults here are bf16 and recomputed activations.
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "ddp_backend": "gloo" if "RANK" in os.environ else None,
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


class Report(TrainerCallback):
    """Writes a line per step: when it ended, this rank's tokens, the loss."""

    def __init__(self, output: Path) -> None:
        file = output / f"rank_{os.environ.get('RANK', '0')}.jsonl"
        self._stream = file.open("w", encoding="ascii", buffering=1)
        self.trainer: Any = None
        self._ended = 0.0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the time."""
        self._ended = time.time()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        """Write the line, once the loss is known."""
        if "loss" not in logs:
            return
        row = {"time": self._ended, "tokens": self.trainer.real_tokens, "loss": logs["loss"]}
        self._stream.write(json.dumps(row | self.more(logs)) + "\n")
        self.trainer.real_tokens = 0

    def more(self, logs: dict[str, Any]) -> dict[str, float]:
        """Return further numbers for the line."""
        return {}


def train(trainer: Any, report: Report) -> None:
    """Train, and leave the process group: torn down at exit, gloo's threads may abort."""
    report.trainer = trainer
    trainer.train()
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
