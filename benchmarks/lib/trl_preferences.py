"""TRL's DPOTrainer or RewardTrainer on the benchmark's workload: one rank of it."""

from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from benchmarks.lib import trl_steps


class _Counting(Trainer):
    """A trainer, counting the real tokens it is given, as alignctl does: the last ones too."""

    real_tokens = 0

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.real_tokens += int(inputs["attention_mask"].sum())
        return super().training_step(model, inputs, *args, **kwargs)

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset  # it is made of tokens already, and keeps its lengths


class _Reward(_Counting, RewardTrainer):
    pass


class _DPO(_Counting, DPOTrainer):
    pass


def main() -> None:
    """Train on `--input` and write `rank_N.jsonl` to `--output`."""
    parser = trl_steps.flags(__doc__)
    parser.add_argument("--method", choices=["dpo", "reward"], required=True)
    parser.add_argument("--by-length", action="store_true")
    options = parser.parse_args()
    # Of a file, so that all ranks find the reference's log-probabilities in one cache.
    rows = Dataset.from_json(
        str(options.input / "pair_tokens.jsonl"), cache_dir=str(options.output / "cache")
    )
    settings = trl_steps.settings(options)
    settings |= {"disable_dropout": True, "remove_unused_columns": False}
    if options.by_length:
        # Rows of about the same length are batched together, so that there is less padding.
        settings |= {"train_sampling_strategy": "group_by_length", "length_column_name": "length"}
    report = trl_steps.Report(options.output)
    tokenizer = AutoTokenizer.from_pretrained(options.input / "hf")
    trainer: Any
    if options.method == "dpo":
        model = AutoModelForCausalLM.from_pretrained(options.input / "hf", dtype=torch.float32)
        trainer = _DPO(
            model=model,
            processing_class=tokenizer,
            train_dataset=rows,
            callbacks=[report],
            args=DPOConfig(precompute_ref_log_probs=True, **settings),
        )
    else:
        model = AutoModelForSequenceClassification.from_pretrained(
            options.input / "hf", num_labels=1, dtype=torch.float32
        )
        trainer = _Reward(
            model=model,
            processing_class=tokenizer,
            train_dataset=rows.map(_whole),
            callbacks=[report],
            args=RewardConfig(**settings),
        )
    trl_steps.train(trainer, report)


def _whole(row: dict[str, Any]) -> dict[str, Any]:
    """Join each answer with its prompt, as RewardTrainer wants it."""
    return {name: row["prompt_ids"] + row[name] for name in ("chosen_ids", "rejected_ids")}


if __name__ == "__main__":
    main()
