"""A policy, a reward model and prompts of a few kilobytes, for runs that sample with vLLM.

vLLM on a CPU knows no attention heads narrower than 32: the model is wider than `tests.tiny`'s.
"""

import json
from pathlib import Path
from typing import Any

from tests import tiny

HIDDEN, HEADS = 64, 2
EPISODES, PROMPTS, SAMPLES = 3, 8, 2
BETA = 0.1


def write(folder: Path) -> Path:
    """Writes hf/ (a policy), reward/ (its reward model), prompts.jsonl and tiny.yaml."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    torch.manual_seed(4)
    config = LlamaConfig(
        num_hidden_layers=tiny.LAYERS,
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        intermediate_size=2 * HIDDEN,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        vocab_size=tiny.VOCABULARY,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        num_labels=1,
    )
    policy, reward = LlamaForCausalLM(config), LlamaForSequenceClassification(config)
    with torch.no_grad():
        # What all hidden states have in common makes the end of text likely: a tenth or so.
        policy.model.embed_tokens.weight[:, 0] = 0.1
        policy.lm_head.weight[2, 0] = 0.8
        torch.nn.init.normal_(reward.score.weight, std=0.3)
    policy.save_pretrained(folder / "hf")
    reward.save_pretrained(folder / "reward")
    for name in ("hf", "reward"):
        tiny.write_tokenizer(folder / name)
    sums = [
        {"prompt": f"{a} + {a % 7}?", "answer": str(a + a % 7), "eval_func": "math_rule"}
        for a in range(40)
    ]
    tiny.write_rows(folder / "prompts.jsonl", sums)
    made = {name: tiny.preset()["sft"] | section for name, section in sections().items()}
    model = tiny.preset()["model"] | {
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_query_groups": HEADS,
        "ffn_hidden_size": 2 * HIDDEN,
    }
    tiny.write_preset(folder / "tiny.yaml", model=model, **made)
    return folder


def sections() -> dict[str, dict[str, Any]]:
    """Three stages that ask the same in their first episode: 16 answers at temperature 0.8."""
    shared: dict[str, Any] = {
        "batch": {"micro_batch_size": 2, "global_batch_size": 16, "seq_length": 64},
        "data": {"validation_fraction": 0.1, "max_prompt_length": 32},
        "rollout": {"max_new_tokens": 12, "kv_cache_gib": 0.05, "temperature": 0.8},
        "experience": {"prompts": PROMPTS, "samples": SAMPLES, "score_batch_size": 4},
        "optimizer": {"lr": 3e-3, "schedule": "constant"},
        "train": {"steps": EPISODES, "eval_interval": 2},
        "launch": {"nproc_per_node": 2, "timeout_minutes": 5},
    }
    adaptive = {"coef": BETA, "controller": "adaptive", "target": 0.05, "horizon": 100}
    return {
        "rlhf": shared
        | {
            "batch": shared["batch"] | {"global_batch_size": 8},
            "experience": shared["experience"] | {"epochs": 2},
            "score": {"missing_eos": "add", "ngram_coef": 0.1},
            "penalty": adaptive,
            "value": {"optimizer": {"lr": 3e-3, "schedule": "constant"}},
        },
        "grpo": shared
        | {
            "score": {"source": "merge", "missing_eos": "keep", "alarm_after": 2},
            # A mean over tokens: a mean of means would round where ratios are exactly 1.
            "loss": {"kl_coef": BETA, "entropy_coef": 0.01, "aggregation": "token"},
        },
        "online_dpo": shared
        | {"batch": shared["batch"] | {"global_batch_size": 8, "micro_batch_size": 1}},
    }


def command(stage: str, inputs: Path, output: Path, *knobs: object) -> list[object]:
    """`alignctl ...` for a run."""
    flags = ["--preset", inputs / "tiny.yaml", "--load", inputs / "hf"]
    flags += ["--reward-load", inputs / "reward", "--data", inputs / "prompts.jsonl"]
    return [stage, *flags, "--output", output, *knobs]


def rows(run: Path, kind: str) -> list[dict[str, Any]]:
    """What was measured, without what depends on the clock and the machine."""
    clock = ("time", "tokens_per_second", "seconds_", "memory_")
    lines = (run / "metrics.jsonl").read_text().splitlines(True)
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [
        {key: value for key, value in row.items() if not key.startswith(clock)}
        for row in found
        if row["kind"] == kind
    ]


def samples(run: Path, episode: int) -> list[dict[str, Any]]:
    """The answers of an episode, counted from 1."""
    lines = (run / f"samples/episode_{episode:07d}.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]
