"""TRL's trainers on the rows of gpu.py; of GRPO what comes after sampling and rewards."""

import os
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from alignctl.config.sections import Model
from benchmarks.lib import gpu_rows, gpu_transformers
from benchmarks.lib.gpu_rows import Scale
from tests import tiny


class _Clock(TrainerCallback):
    """Notes when each step has ended."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up, self.ends = warm_up, [gpu_rows.now()]

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(gpu_rows.now())
        if len(self.ends) == self.warm_up + 1 and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()


class _DPO(DPOTrainer):
    """DPO of rows that are tokens already."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


class _GRPO(GRPOTrainer):
    """GRPO of answers that are given, with their advantages."""

    given: tuple[dict[str, Any], ...] = ()

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        self._step += 1
        return self.given[(self._step - 1) % len(self.given)]


def measure(model: Model, scale: Scale, *, precision: str) -> dict[str, Any]:
    """Time each method."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="alignctl-bench-") as folder:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny.write_tokenizer(Path(folder)))
        kind = "sdpa" if model.family == "llama2" else "eager"
        for method in gpu_rows.METHODS:
            found[f"{method} {kind}"] = gpu_rows.attempt(
                lambda m=method: _time(model, scale, m, kind, tokenizer, precision, folder)
            )
            torch.cuda.empty_cache()
    return found


def _time(
    model: Model,
    scale: Scale,
    method: str,
    kind: str,
    tokenizer: Any,
    precision: str,
    folder: str,
) -> dict[str, float]:
    groups = gpu_rows.make_groups(method, scale, model.vocab_size)
    clock = _Clock(scale.warm_up)
    shared = {
        "model": gpu_transformers.build(model, kind),
        "processing_class": tokenizer,
        "callbacks": [clock],
    }
    make = {"sft": _sft, "dpo": _dpo, "grpo": _grpo}[method]
    make(groups, shared, _settings(method, scale, precision, folder)).train()
    seconds = [after - before for before, after in pairwise(clock.ends)]
    return gpu_rows.summary(seconds[scale.warm_up :], gpu_rows.count_tokens(groups))


def _settings(method: str, scale: Scale, precision: str, folder: str) -> dict[str, Any]:
    rows = scale.groups * scale.samples // (2 if method == "dpo" else 1)
    micro_batch = max(1, scale.micro_batch // (2 if method == "dpo" else 1))
    return {
        "output_dir": folder,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": rows // micro_batch,
        "max_steps": scale.warm_up + scale.steps,
        "learning_rate": 1e-5,
        "weight_decay": 0.0,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "bf16": precision == "bf16",
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def _sft(groups: Any, shared: Any, settings: Any) -> Any:
    rows = [
        {
            "input_ids": prompt + answer,
            "completion_mask": [0] * len(prompt) + [1] * len(answer),
        }
        for group in groups
        for prompt, answer in group
    ]
    arguments = SFTConfig(completion_only_loss=True, max_length=None, **settings)
    return SFTTrainer(train_dataset=Dataset.from_list(rows), args=arguments, **shared)


def _dpo(groups: Any, shared: Any, settings: Any) -> Any:
    rows = [
        {
            "prompt_ids": group[0][0],
            "chosen_ids": group[0][1],
            "rejected_ids": group[1][1],
        }
        for group in groups
    ]
    arguments = DPOConfig(
        precompute_ref_log_probs=True, max_length=None, remove_unused_columns=False, **settings
    )
    return _DPO(train_dataset=Dataset.from_list(rows), args=arguments, **shared)


def _grpo(groups: Any, shared: Any, settings: Any) -> Any:
    rows = [row for group in groups for row in group]
    size = settings["per_device_train_batch_size"]
    total = float(sum(len(answer) for _, answer in rows))
    arguments = GRPOConfig(
        num_generations=len(groups[0]), beta=0.0, loss_type="dapo", temperature=1.0, **settings
    )
    trainer = _GRPO(
        train_dataset=Dataset.from_list([{"prompt": "a"}] * len(rows)),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments,
        **shared,
    )
    device = trainer.accelerator.device
    trainer.given = tuple(
        {name: value.to(device) for name, value in _padded(part, total).items()}
        for part in gpu_rows.chunked(rows, size)
    )
    return trainer


def _padded(rows: list[tuple[list[int], ...]], total: float) -> dict[str, Any]:
    """Pad prompts in front and answers behind, as the trainer does."""
    made = {}
    for name, place, is_left in (("prompt", 0, True), ("completion", 1, False)):
        longest = max(len(row[place]) for row in rows)
        tokens = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for number, row in enumerate(rows):
            length = len(row[place])
            part = slice(longest - length, None) if is_left else slice(0, length)
            tokens[number, part] = torch.tensor(row[place])
            mask[number, part] = 1
        made |= {f"{name}_ids": tokens, f"{name}_mask": mask}
    made["advantages"] = torch.where(torch.arange(len(rows)) % 2 == 0, 1.0, -1.0)
    made["num_items_in_batch"] = torch.tensor(total)
    return made
