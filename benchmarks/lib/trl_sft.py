"""TRL's SFTTrainer on the benchmark's workload: one rank of it, started by Python or torchrun."""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from benchmarks.lib.race import json_lines
from benchmarks.lib.workload import OPTIMIZER, SEED


class _Counting(SFTTrainer):
    """The trainer, counting the real tokens it is given.

    A document's last token is not counted, as alignctl does not: nothing follows it.
    """

    real_tokens = 0

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if "attention_mask" in inputs:
            mask = inputs["attention_mask"]
            self.real_tokens += int(mask.sum()) - len(mask)
        else:
            positions = inputs["position_ids"]
            self.real_tokens += positions.numel() - int((positions == 0).sum())
        return super().training_step(model, inputs, *args, **kwargs)


class _Report(TrainerCallback):
    """Writes a line per step: when it ended, this rank's tokens, the loss."""

    def __init__(self, file: Path) -> None:
        self._stream = file.open("w", encoding="ascii", buffering=1)
        self.trainer: _Counting | None = None
        self._ended = 0.0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._ended = time.time()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "loss" not in logs:
            return
        assert self.trainer is not None
        row = {"time": self._ended, "tokens": self.trainer.real_tokens, "loss": logs["loss"]}
        self._stream.write(json.dumps(row) + "\n")
        self.trainer.real_tokens = 0


def main() -> None:
    """Trains on `--input` and writes `rank_N.jsonl` to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seq-length", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--micro-batch", type=int, required=True)
    parser.add_argument("--accumulation", type=int, required=True)
    parser.add_argument("--packing", action="store_true")
    options = parser.parse_args()
    report = _Report(options.output / f"rank_{os.environ.get('RANK', '0')}.jsonl")
    trainer = _Counting(
        model=AutoModelForCausalLM.from_pretrained(options.input / "hf", dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(options.input / "hf"),
        train_dataset=Dataset.from_list(json_lines(options.input / "tokens.jsonl")),
        callbacks=[report],
        args=SFTConfig(
            output_dir=str(options.output / "trl"),
            max_length=options.seq_length,
            packing=options.packing,
            completion_only_loss=True,
            per_device_train_batch_size=options.micro_batch,
            gradient_accumulation_steps=options.accumulation,
            max_steps=options.steps,
            seed=SEED,
            optim="adamw_torch_fused",
            learning_rate=OPTIMIZER["lr"],
            weight_decay=OPTIMIZER["weight_decay"],
            adam_beta1=OPTIMIZER["beta1"],
            adam_beta2=OPTIMIZER["beta2"],
            adam_epsilon=OPTIMIZER["eps"],
            max_grad_norm=OPTIMIZER["clip_grad"],
            lr_scheduler_type="constant",
            # TRL's own defaults here are bf16 and recomputed activations.
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            ddp_backend="gloo" if "RANK" in os.environ else None,
            ddp_find_unused_parameters=False,
            dataloader_pin_memory=False,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
    )
    report.trainer = trainer
    trainer.train()


if __name__ == "__main__":
    main()
