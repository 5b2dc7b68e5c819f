"""The courses of TRL's own trainers over the rows of `followed.py`."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from tests import tiny
from tests.parallel.followed import BETA, CENTERING, OPTIMIZER, PAIRS, STEPS, rows

Course = dict[str, list[float]]


class _InOrderReward(RewardTrainer):  # type: ignore[misc]  # TRL has no types
    """TRL's trainer without its shuffling."""

    def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class _InOrderDPO(DPOTrainer):  # type: ignore[misc]  # TRL has no types
    """TRL's trainer without its shuffling, and with rows that are tokens already."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def reward(model: Path, scratch: Path) -> Course:
    """RewardTrainer with centring."""
    pairs = [
        {name: row["prompt_ids"] + row[name] for name in ("chosen_ids", "rejected_ids")}
        for row in rows()
    ]
    trainer = _InOrderReward(
        model=AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32),
        args=RewardConfig(center_rewards_coefficient=CENTERING, **_arguments(scratch)),
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(tiny.write_tokenizer(scratch)),
    )
    return _course(trainer)


def dpo(model: Path, scratch: Path) -> Course:
    """DPOTrainer against the model itself."""
    trainer = _InOrderDPO(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=DPOConfig(beta=BETA, **_arguments(scratch)),
        train_dataset=Dataset.from_list(rows()),
        processing_class=AutoTokenizer.from_pretrained(tiny.write_tokenizer(scratch)),
    )
    return _course(trainer)


def _arguments(scratch: Path) -> dict[str, Any]:
    return {
        "output_dir": str(scratch / "trl"),
        "per_device_train_batch_size": PAIRS,
        "max_steps": STEPS,
        "max_length": None,
        "optim": "adamw_torch",
        "learning_rate": OPTIMIZER.lr,
        "lr_scheduler_type": "constant",
        "weight_decay": OPTIMIZER.weight_decay,
        "adam_beta1": OPTIMIZER.beta1,
        "adam_beta2": OPTIMIZER.beta2,
        "adam_epsilon": OPTIMIZER.eps,
        "max_grad_norm": OPTIMIZER.clip_grad,
        "disable_dropout": True,
        "remove_unused_columns": False,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def _course(trainer: Any) -> Course:
    trainer.train()
    logged = [row for row in trainer.state.log_history if "loss" in row]
    return {name: [float(row[name]) for row in logged] for name in ("loss", "grad_norm")}
