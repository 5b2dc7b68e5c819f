"""TRL's GRPOTrainer on the benchmark's prompts: one rank of it, started by torchrun."""

import os
import time
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from benchmarks.lib import trl_steps
from benchmarks.lib.prompts import LEARNING_RATE
from benchmarks.lib.race import json_lines


class _Timed(GRPOTrainer):
    """The trainer, with the seconds of its phases and the sampled tokens of a step."""

    real_tokens = 0

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seconds = dict.fromkeys(("rollout", "scoring", "push"), 0.0)
        if self.use_vllm:
            self.vllm_generation.sync_weights = self._timed("push", self._push)

    def _push(self) -> None:
        type(self.vllm_generation).sync_weights(self.vllm_generation)

    def _timed(self, phase: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = act(*args, **kwargs)
            self.seconds[phase] += time.perf_counter() - started
            return result

        return wrapped

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        pushed = self.seconds["push"]
        completions, logprobs = self._timed("rollout", super()._generate_single_turn)(
            *args, **kwargs
        )
        self.seconds["rollout"] -= self.seconds["push"] - pushed  # which happens inside
        self.real_tokens += sum(map(len, completions))
        return completions, logprobs

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        return self._timed("scoring", super()._calculate_rewards)(*args, **kwargs)


class _Report(trl_steps.Report):
    """A line per step with the phases; what no phase claims is training."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._before = time.time()

    def more(self, logs: dict[str, Any]) -> dict[str, float]:
        seconds = dict(self.trainer.seconds)
        seconds["training"] = self._ended - self._before - sum(seconds.values())
        self._before = self._ended
        self.trainer.seconds = dict.fromkeys(self.trainer.seconds, 0.0)
        row = {f"seconds_{phase}": value for phase, value in seconds.items()}
        name = "sampling/sampling_logp_difference/mean"
        return row | ({"mismatch_mean_difference": logs[name]} if name in logs else {})


def main() -> None:
    """Train on `--input` and write `rank_N.jsonl` to `--output`."""
    parser = trl_steps.flags(__doc__)
    parser.add_argument("--samples", type=int, required=True)
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--engine", choices=["generate", "vllm"], required=True)
    options = parser.parse_args()
    settings = trl_steps.settings(options)
    del settings["max_length"]
    settings["learning_rate"] = LEARNING_RATE
    tokenizer = AutoTokenizer.from_pretrained(options.input / "hf", padding_side="left")
    report = _Report(options.output)
    if options.engine == "vllm":
        # What alignctl tells vLLM too, in the way that vLLM itself is told.
        os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        settings |= {"use_vllm": True, "vllm_mode": "colocate"}
        settings |= {"vllm_max_model_length": options.seq_length}
    trainer = _Timed(
        model=AutoModelForCausalLM.from_pretrained(options.input / "hf", dtype=torch.float32),
        reward_funcs=AutoModelForSequenceClassification.from_pretrained(
            options.input / "reward", num_labels=1, dtype=torch.float32
        ),
        reward_processing_classes=AutoTokenizer.from_pretrained(options.input / "hf"),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(json_lines(options.input / "prompts.jsonl")),
        callbacks=[report],
        args=GRPOConfig(
            num_generations=options.samples,
            max_completion_length=options.new_tokens,
            temperature=1.0,
            beta=0.0,
            loss_type="dapo",
            **settings,
        ),
    )
    trl_steps.train(trainer, report)


if __name__ == "__main__":
    main()
