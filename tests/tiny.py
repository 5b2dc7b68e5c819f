"""Models, a tokenizer and data of a few kilobytes, for tests that run the real programs."""

import json
from collections.abc import Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import yaml

from alignctl.config.sections import Model

Family = Literal["llama", "llama-gqa", "bloom"]

VOCABULARY = 261
"""Four special tokens, 256 bytes, one merge: odd, so that no TP divides it."""

LAYERS, HIDDEN, HEADS = 2, 32, 4


def architecture(**changes: Any) -> Model:
    """A Llama of two layers with grouped queries, of which no weights are made."""
    shape: dict[str, Any] = {
        "family": "llama2",
        "num_layers": 2,
        "hidden_size": 128,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "ffn_hidden_size": 160,
        "vocab_size": 509,
        "max_position_embeddings": 64,
        "rotary_base": 10000.0,
        "tie_embeddings": False,
    }
    return Model(**shape | changes)


def write_model(
    folder: Path, family: Family = "llama-gqa", *, seed: int = 0, heads: int = HEADS
) -> Path:
    """A Hugging Face model with random weights and its tokenizer, as transformers writes them."""
    import torch
    from transformers import BloomConfig, BloomForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    tokens: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    model: Any
    if family == "bloom":
        shape = {"n_layer": LAYERS, "hidden_size": HIDDEN, "n_head": heads}
        model = BloomForCausalLM(BloomConfig(**shape, vocab_size=VOCABULARY, **tokens))
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                num_hidden_layers=LAYERS,
                hidden_size=HIDDEN,
                num_attention_heads=heads,
                num_key_value_heads=2 if family == "llama-gqa" else heads,
                intermediate_size=2 * HIDDEN,
                max_position_embeddings=128,
                rms_norm_eps=1e-5,
                vocab_size=VOCABULARY,
                **tokens,
            )
        )
    model.save_pretrained(folder)
    return write_tokenizer(folder)


def write_tokenizer(folder: Path, *, num_extra: int = 0) -> Path:
    """A byte-level tokenizer.

    Args:
        folder: Where its files go, beside a model's for instance.
        num_extra: Tokens beyond the rows of the models' embeddings.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", "<pad>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*special, *alphabet, "th", *(f"<extra_{n}>" for n in range(num_extra))]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("t", "h")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    fast.save_pretrained(folder)
    return folder


def write_rows(file: Path, rows: Iterable[object] | None = None) -> Path:
    """JSON lines; by default forty sums."""
    if rows is None:
        pairs = [(a, 3 * a % 7) for a in range(40)]
        rows = [{"query": f"{a} + {b}?", "response": f"{a + b}"} for a, b in pairs]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def preset(family: Family = "llama-gqa") -> dict[str, Any]:
    """The tree of a preset file for `write_model`: two ranks, four steps, a checkpoint each two."""
    is_bloom = family == "bloom"
    model = {
        "family": "bloom" if is_bloom else "llama2",
        "num_layers": LAYERS,
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_query_groups": 2 if family == "llama-gqa" else HEADS,
        "ffn_hidden_size": (4 if is_bloom else 2) * HIDDEN,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 128,
        "norm_epsilon": 1e-5,
        "rotary_base": None if is_bloom else 10000.0,
        "tie_embeddings": is_bloom,
        "vocab_divisor": 8,
    }
    sft = {
        "precision": "fp32",
        "parallel": {"tp": 1, "pp": 1},
        "launch": {"nproc_per_node": 2, "timeout_minutes": 1},
        "batch": {"micro_batch_size": 2, "global_batch_size": 4, "seq_length": 64},
        "data": {"validation_fraction": 0.1, "packing": "none"},
        "optimizer": {"lr": 1e-2, "min_lr": 1e-3, "warmup_steps": 2},
        "train": {"steps": 4, "eval_interval": 100},
        "checkpoint": {"save_interval": 2},
    }
    preferences = {**sft, "data": {"validation_fraction": 0.1}}
    pretrain = {
        **sft,
        "batch": {"micro_batch_size": 2, "global_batch_size": 4, "seq_length": 32},
        "data": {"split": "90,10,0"},
    }
    stages = {
        "sft": sft,
        "reward": preferences,
        "dpo": preferences | {"optimizer": {"lr": 3e-3, "warmup_steps": 1}},
        "pretrain": pretrain,
    }
    return {
        "model": model,
        "convert": {"tp": 1, "pp": 1},
        **{name: deepcopy(stage) for name, stage in stages.items()},
    }


def write_corpus(
    prefix: Path, documents: Iterable[Sequence[int]] | None = None, *, dtype: str = "uint16"
) -> Path:
    """An indexed dataset as Megatron-Core writes it; by default 200 documents, each ends with 2.

    Args:
        prefix: NAME of NAME.bin and NAME.idx.
        documents: Token ids of each.
        dtype: Their type.
    """
    import numpy as np
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    if documents is None:
        rng = np.random.default_rng(0)
        documents = [
            # Runs of rising bytes: something that can be learned.
            [*((int(start) + step) % 256 + 4 for step in range(int(length))), 2]
            for start, length in zip(
                rng.integers(0, 256, 200), rng.integers(3, 60, 200), strict=True
            )
        ]
    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.dtype(dtype).type)
    for document in documents:
        builder.add_document(torch.tensor(list(document)), [len(document)])
    builder.finalize(f"{prefix}.idx")
    return prefix


def write_pairs(file: Path, rows: Iterable[object] | None = None) -> Path:
    """JSON lines of preferences; by default forty sums, the right one better than a wrong one."""
    if rows is None:
        sums = [(a, 3 * a % 7) for a in range(40)]
        rows = [
            {"prompt": f"{a} + {b}?", "chosen": f"{a + b}", "rejected": f"{a + b + 1}"}
            for a, b in sums
        ]
    return write_rows(file, rows)


def write_preset(file: Path, family: Family = "llama-gqa", **changes: Any) -> Path:
    """A preset file, with some of its sections replaced."""
    # What is there twice is written twice: presets have no anchors, and JSON has none.
    plain = json.loads(json.dumps(preset(family) | changes))
    file.write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
    return file


def on_policy_preset() -> dict[str, Any]:
    """A preset of stages that learn from their own answers, for a Llama of heads 32 wide.

    Two ranks, four episodes of two updates; heads are so wide because vLLM on a CPU wants it.
    """
    model = preset("llama")["model"] | {
        "hidden_size": 64,
        "num_attention_heads": 2,
        "num_query_groups": 2,
        "ffn_hidden_size": 64,
    }
    optimizer = {"lr": 1e-3, "schedule": "constant"}
    shared: dict[str, Any] = {
        "precision": "fp32",
        "parallel": {"tp": 2, "pp": 1},
        "launch": {"nproc_per_node": 2, "timeout_minutes": 1},
        "batch": {"micro_batch_size": 2, "global_batch_size": 4, "seq_length": 70},
        "data": {"max_prompt_length": 32},
        "rollout": {"max_new_tokens": 32, "kv_cache_gib": 0.05},
        "optimizer": optimizer,
        "train": {"steps": 4},
    }
    stages: dict[str, dict[str, Any]] = {
        "rlhf": {"experience": {"prompts": 8}, "value": {"optimizer": optimizer}},
        "online_dpo": {"experience": {"prompts": 8, "samples": 2}},
        "grpo": {"experience": {"prompts": 4, "samples": 2}},
    }
    # JSON has no references: YAML would be written with aliases, which presets may not have.
    return {"model": model, **{n: json.loads(json.dumps(shared | s)) for n, s in stages.items()}}
