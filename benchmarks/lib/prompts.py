"""What the contenders of grpo.py are given: prompts, a policy and a reward model."""

import json
from pathlib import Path

import numpy as np
import yaml

from benchmarks.lib.workload import MODEL, OPTIMIZER, SEED, SPECIAL, VOCAB_SIZE, Workload


def make(workload: Workload, prompts: int, samples: int, length: int, new_tokens: int) -> None:
    """Write `hf/`, `reward/`, `prompts.jsonl` and `preset.yaml`.

    Args:
        workload: Where, and for how many steps.
        prompts: Of a step.
        samples: Answers to each.
        length: Tokens of each prompt.
        new_tokens: Most tokens of an answer.
    """
    workload.make_model()
    _write_reward(workload.hf, workload.folder / "reward")
    rng = np.random.default_rng(SEED)
    with (workload.folder / "prompts.jsonl").open("w", encoding="ascii") as rows:
        for _ in range(workload.documents):
            words = rng.integers(len(SPECIAL), VOCAB_SIZE, length - 1)  # BOS is the first token
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
        "optimizer": {**OPTIMIZER, "schedule": "constant"},
        "train": {"steps": workload.warm_up + workload.steps, "seed": SEED},
    }
    preset = {"model": {"family": "llama2", **MODEL}, "grpo": stage}
    (workload.folder / "preset.yaml").write_text(yaml.safe_dump(preset), encoding="ascii")


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
