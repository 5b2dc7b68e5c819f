"""What every contender is given: one model, one tokenizer, one data set, all made from a seed."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED = 1234
VOCAB_SIZE = 8192
"""The smallest vocabulary in practical use. A larger one would weigh more in 30M parameters than
in any real model, and flatter a trainer that computes logits only where a token is learned."""

SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
MODEL = {
    "num_layers": 7,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_query_groups": 8,
    "ffn_hidden_size": 1408,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 2048,
    "norm_epsilon": 1e-5,
    "rotary_base": 10000.0,
    "tie_embeddings": False,
}
"""Llama's shape (feed-forward 8/3 of the width, heads of 64): 30.9M parameters, of which 4.2M are
the output layer, as many the embedding."""

OPTIMIZER = {
    "lr": 1e-3,
    "weight_decay": 0.0,
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "clip_grad": 1.0,
}

PROMPT_WORDS = (60, 0.9)
RESPONSE_WORDS = (116, 0.9)
"""Median and sigma of log-normal lengths in tokens, the shape instruction data has: many short
rows and a long tail; means of 88 and 170."""


@dataclass(frozen=True)
class Workload:
    """A folder with the inputs, and how much of them an optimizer step takes.

    Attributes:
        folder: Holds `hf/`, `rows.jsonl` (text), `tokens.jsonl` (the same as ids and masks) and
            `preset.yaml`; of preferences `pairs.jsonl` and `pair_tokens.jsonl`.
        documents: Rows of the data set.
        seq_length: No row is longer, and packed sequences are as long.
        sequences_per_step: Packed sequences in an optimizer step.
        documents_per_step: Rows in an optimizer step where they are not packed: about as many
            tokens.
        warm_up: Steps before the clock starts.
        steps: Steps on the clock.
    """

    folder: Path
    documents: int
    seq_length: int
    sequences_per_step: int
    documents_per_step: int
    warm_up: int
    steps: int

    @property
    def hf(self) -> Path:
        """Folder of the model and its tokenizer, as transformers reads them."""
        return self.folder / "hf"

    def make(self) -> dict[str, float]:
        """Write everything; return what the data set looks like."""
        self.make_model()
        self._write_preset()
        return self._write_rows()

    def make_pairs(
        self, pairs: Iterable[tuple[list[int], list[int], list[int]]] | None = None
    ) -> dict[str, float]:
        """Write everything for preferences; return what the data set looks like.

        Args:
            pairs: Token ids of prompts, better and worse answers; None: as in `make`.
        """
        self.make_model()
        self._write_preset()
        return self._write_pairs(self._drawn_pairs() if pairs is None else pairs)

    def make_model(self) -> None:
        """Write the model and its tokenizer only."""
        self.hf.mkdir(parents=True)
        _write_tokenizer(self.hf)
        _write_model(self.hf)

    def _drawn_pairs(self) -> Iterator[tuple[list[int], list[int], list[int]]]:
        rng = np.random.default_rng(SEED)
        first, weights = len(SPECIAL), _frequencies()
        while True:
            counts = [_length(rng, spread) for spread in (PROMPT_WORDS, *2 * (RESPONSE_WORDS,))]
            if counts[0] + max(counts[1:]) + 2 > self.seq_length:
                continue
            prompt, better, worse = (
                (rng.choice(len(weights), count, p=weights) + first).tolist() for count in counts
            )
            yield prompt, better, worse

    def _write_pairs(
        self, pairs: Iterable[tuple[list[int], list[int], list[int]]]
    ) -> dict[str, float]:
        lengths: list[int] = []
        shared = 0
        with (
            (self.folder / "pairs.jsonl").open("w", encoding="ascii") as rows,
            (self.folder / "pair_tokens.jsonl").open("w", encoding="ascii") as tokens,
        ):
            for words in pairs:
                counts = [len(part) for part in words]
                if counts[0] + max(counts[1:]) + 2 > self.seq_length:
                    continue  # so that nobody has to truncate, which each does in its own way
                texts = [" ".join(f"w{word}" for word in part) for part in words]
                row = dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))
                row |= {name: " " + row[name] for name in ("chosen", "rejected")}
                rows.write(json.dumps(row) + "\n")
                ids = {
                    "prompt_ids": [1, *words[0]],
                    "chosen_ids": [*words[1], 2],
                    "rejected_ids": [*words[2], 2],
                    "length": counts[0] + max(counts[1:]) + 2,
                }
                tokens.write(json.dumps(ids) + "\n")
                lengths += [counts[0] + count + 2 for count in counts[1:]]
                shared += counts[0]
                if len(lengths) == 2 * self.documents:
                    break
        return {
            "tokens": sum(lengths),
            "needed": sum(lengths) - shared,
            "mean": float(np.mean(lengths)),
            "median": float(np.median(lengths)),
            "longest": max(lengths),
        }

    def _write_rows(self) -> dict[str, float]:
        rng = np.random.default_rng(SEED)
        first, weights = len(SPECIAL), _frequencies()
        lengths: list[int] = []
        learned: list[int] = []
        with (
            (self.folder / "rows.jsonl").open("w", encoding="ascii") as rows,
            (self.folder / "tokens.jsonl").open("w", encoding="ascii") as tokens,
        ):
            while len(lengths) < self.documents:
                prompt, response = (
                    _length(rng, spread) for spread in (PROMPT_WORDS, RESPONSE_WORDS)
                )
                if prompt + response + 2 > self.seq_length:
                    continue  # so that nobody has to truncate, which each does in its own way
                words = rng.choice(len(weights), prompt + response, p=weights) + first
                texts = [" ".join(f"w{word}" for word in words[:prompt])]
                texts += [" " + " ".join(f"w{word}" for word in words[prompt:])]
                rows.write(json.dumps({"prompt": texts[0], "response": texts[1]}) + "\n")
                ids = [1, *words.tolist(), 2]
                mask = [0] * (1 + prompt) + [1] * (response + 1)
                tokens.write(json.dumps({"input_ids": ids, "completion_mask": mask}) + "\n")
                lengths.append(len(ids))
                learned.append(sum(mask))
        return {
            "tokens": sum(lengths),
            "mean": float(np.mean(lengths)),
            "median": float(np.median(lengths)),
            "longest": max(lengths),
            "learned_tokens": sum(learned),
        }

    def _write_preset(self) -> None:
        stage = {
            "precision": "fp32",
            "parallel": {"tp": 1},
            "launch": {"nproc_per_node": 2, "timeout_minutes": 2},
            "batch": {
                "micro_batch_size": 1,
                "global_batch_size": self.sequences_per_step,
                "seq_length": self.seq_length,
            },
            "optimizer": {**OPTIMIZER, "schedule": "constant"},
            "train": {"steps": self.warm_up + self.steps, "seed": SEED},
        }
        preset: dict[str, Any] = {
            "model": {"family": "llama2", **MODEL},
            **dict.fromkeys(("sft", "reward", "dpo"), stage),
        }
        # JSON, which is YAML too: a dump of YAML has anchors where values repeat.
        (self.folder / "preset.yaml").write_text(json.dumps(preset, indent=2), encoding="ascii")


def _frequencies() -> NDArray[np.float64]:
    """Compute the frequency of each word, as in text (Zipf-Mandelbrot): a model can learn it."""
    weights = 1.0 / (np.arange(VOCAB_SIZE - len(SPECIAL)) + 2.7)
    return weights / weights.sum()


def _length(rng: np.random.Generator, spread: tuple[int, float]) -> int:
    median, sigma = spread
    return max(1, round(median * np.exp(sigma * rng.standard_normal())))


def _write_tokenizer(folder: Path) -> None:
    """Write a tokenizer in which each word is a token: `w4` to `w8191`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL.values(), *(f"w{number}" for number in range(len(SPECIAL), VOCAB_SIZE))]
    backend = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, "<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, add_bos_token=True, **SPECIAL
    ).save_pretrained(folder)


def _write_model(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(SEED)
    LlamaForCausalLM(
        LlamaConfig(
            num_hidden_layers=MODEL["num_layers"],
            hidden_size=MODEL["hidden_size"],
            num_attention_heads=MODEL["num_attention_heads"],
            num_key_value_heads=MODEL["num_query_groups"],
            intermediate_size=MODEL["ffn_hidden_size"],
            vocab_size=VOCAB_SIZE,
            max_position_embeddings=MODEL["max_position_embeddings"],
            rms_norm_eps=MODEL["norm_epsilon"],
            rope_parameters={"rope_type": "default", "rope_theta": MODEL["rotary_base"]},
            tie_word_embeddings=MODEL["tie_embeddings"],
        )
    ).save_pretrained(folder)
