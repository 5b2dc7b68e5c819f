"""What the contenders of grpo.py are given: prompts, a policy and a reward model."""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import yaml

from benchmarks.lib.workload import MODEL, OPTIMIZER, SEED, SPECIAL, VOCAB_SIZE, Workload

LEARNING_RATE = 1e-6
"""So small that answers stay as long as those of random weights: a step is to be like another."""


def draw_prompts(length: int) -> Iterator[list[int]]:
    """Draw prompts of so many tokens without end, BOS among them."""
    rng = np.random.default_rng(SEED)
    while True:
        yield rng.integers(len(SPECIAL), VOCAB_SIZE, length - 1).tolist()


def make(
    workload: Workload,
    questions: Iterable[list[int]],
    prompts: int,
    samples: int,
    length: int,
    new_tokens: int,
) -> float:
    """Write `hf/`, `reward/`, `prompts.jsonl` and `preset.yaml`; return a prompt's mean tokens.

    Args:
        workload: Where, and for how many steps.
        questions: Token ids of prompts, without BOS; as many are taken as the workload has rows.
        prompts: Of a step.
        samples: Answers to each.
        length: Most tokens of a prompt; longer ones are left out.
        new_tokens: Most tokens of an answer.
    """
    workload.make_model()
    _write_reward(workload.hf, workload.folder / "reward")
    fitting = (words for words in questions if len(words) < length)
    taken = list(islice(fitting, workload.documents))
    with (workload.folder / "prompts.jsonl").open("w", encoding="ascii") as rows:
        for words in taken:
            rows.write(json.dumps({"prompt": " ".join(f"w{word}" for word in words)}) + "\n")
    stage = {
        "precision": "fp32",
        "parallel": {"tp": 1},
        "launch": {"nproc_per_node": 2, "timeout_minutes": 5},
        "batch": {
            "micro_batch_size": samples,
            "global_batch_size": prompts * samples,
            "seq_length": length + new_tokens,
        },
        "data": {"max_prompt_length": length},
        "rollout": {"max_new_tokens": new_tokens},
        "experience": {"prompts": prompts, "samples": samples, "score_batch_size": samples},
        "score": {"source": "dense_only"},
        "optimizer": {**OPTIMIZER, "lr": LEARNING_RATE, "schedule": "constant"},
        "train": {"steps": workload.warm_up + workload.steps, "seed": SEED},
    }
    preset = {"model": {"family": "llama2", **MODEL}, "grpo": stage}
    (workload.folder / "preset.yaml").write_text(yaml.safe_dump(preset), encoding="ascii")
    return float(np.mean([len(words) + 1 for words in taken]))


def _write_reward(policy: Path, folder: Path) -> None:
    """Write the policy's layers with a score head, drawn from a seed."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    AutoModelForSequenceClassification.from_pretrained(
        policy, num_labels=1, pad_token_id=tokenizer.pad_token_id
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
