"""Corpora of the jobs, and what a plain loop over transformers makes of Megatron's own samples."""

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from tests import tiny
from tests.parallel import documents

SEQ_LENGTH, BATCH, EOD, SEED = 32, 4, 2, 11
NUM_SAMPLES = documents.FOLLOW_STEPS * BATCH
WEIGHTS = (2.0, 1.0)


def corpora(folder: Path) -> list[Path]:
    """The prefixes of the two datasets that are blended."""
    return [folder / "corpora" / name for name in ("a", "b")]


def write_corpora(folder: Path) -> None:
    """Documents of random tokens and lengths; of the second, several passes are taken."""
    rng = np.random.default_rng(3)
    for prefix, count in zip(corpora(folder), (150, 20), strict=True):
        lengths = rng.integers(2, 40, count).tolist()
        texts = [rng.integers(3, documents.VOCAB_SIZE, length).tolist() for length in lengths]
        tiny.write_corpus(prefix, [[*text, EOD] for text in texts])


def write(path: Path, folder: Path) -> None:
    """Writes pretrain.json and pretrain_apart.json of a model: its losses and gradient norms."""
    for name, is_apart in (("pretrain", False), ("pretrain_apart", True)):
        course = _train(path / "hf", _samples(folder), is_apart=is_apart)
        (path / f"{name}.json").write_text(json.dumps(course))


def _samples(folder: Path) -> Any:
    """The training sequences as Megatron-LM would build them."""
    from megatron.core.datasets.blended_megatron_dataset_builder import (
        BlendedMegatronDatasetBuilder,
    )
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    class Tokenizer:
        vocab_size, eod = documents.VOCAB_SIZE, EOD
        unique_identifiers: ClassVar[dict[str, str]] = {}

    config = GPTDatasetConfig(
        random_seed=SEED,
        sequence_length=SEQ_LENGTH,
        blend=([str(prefix) for prefix in corpora(folder)], list(WEIGHTS)),
        split="1,0,0",
        tokenizer=Tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    builder = BlendedMegatronDatasetBuilder(GPTDataset, [NUM_SAMPLES, 0, 0], lambda: True, config)
    return builder.build()[0]


def _train(path: Path, samples: Any, *, is_apart: bool) -> dict[str, list[float]]:
    """What anybody would write: one sequence (or one document of it) after the other."""
    from tests.parallel.reference import adamw, learning_rate, load

    model = load(path).train()
    settings = documents.FOLLOW_OPTIMIZER
    assert settings.clip_grad is not None
    optimizer = adamw(model, settings)
    losses, norms = [], []
    for step in range(documents.FOLLOW_STEPS):
        texts: list[list[int]] = []
        for number in range(step * BATCH, (step + 1) * BATCH):
            sample = samples[number]
            text = torch.cat([sample["tokens"], sample["labels"][-1:]]).tolist()
            texts += _documents(text) if is_apart else [text]
        count = sum(len(text) - 1 for text in texts)
        optimizer.zero_grad()
        total = 0.0
        for text in texts:
            tokens = torch.tensor(text)
            logits = model(tokens[None, :-1]).logits[0]
            loss = cross_entropy(logits, tokens[1:], reduction="sum") / count
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.step()
        losses.append(total)
        norms.append(float(norm))
    return {"loss": losses, "grad_norm": norms}


def _documents(text: list[int]) -> list[list[int]]:
    """The parts of a sequence that end with EOD, and the rest; parts of one token are left out."""
    parts: list[list[int]] = [[]]
    for token in text:
        parts[-1].append(token)
        if token == EOD:
            parts.append([])
    return [part for part in parts if len(part) > 1]
