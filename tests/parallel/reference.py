"""The tiny models of the jobs, and what plain transformers and torch make of them."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from alignctl.config.convert import ConvertOptions
from alignctl.config.sections import Model, Optimizer
from alignctl.data.batch import IGNORE, Document
from alignctl.stages import convert
from tests.parallel import documents
from tests.parallel.cases import FAMILY_MODELS, MODELS, POLICIES, TRAINED


def make(folder: Path) -> Path:
    """Writes every model as a Hugging Face folder and as a Megatron checkpoint, with references.

    Of the other families it writes the Hugging Face folder alone.

    Args:
        folder: Gets NAME/hf, NAME/mcore, NAME/legacy (TP 2, PP 4), NAME/logits.npy and, for what
            is trained, NAME/evaluation.json with its documents, NAME/follow.json and
            NAME/pretrain*.json, with the corpora that these read; and of a policy NAME/peft*,
            NAME/answer_logprobs.json, NAME/logprobs.pt and NAME/ppo.json, and its reward model
            with NAME-reward/course.json, values.pt and value.json.
    """
    from tests.parallel import plain_on_policy, plain_peft, plain_pretraining, plain_rewards

    plain_pretraining.write_corpora(folder)
    for name in MODELS:
        path = folder / name
        model = build(name)
        model.save_pretrained(path / "hf")
        options = {"load": path / "hf", "model": _architecture(path / "hf"), "verify": "none"}
        for target in (
            {"save": path / "mcore"},
            {"save": path / "legacy", "format": "legacy", "tp": 2, "pp": 4},
        ):
            convert.run("hf2mg", ConvertOptions.model_validate(options | target))
        np.save(path / "logits.npy", logits(model).numpy())
        if name in TRAINED:
            spoken = in_the_models_words(model, documents.of_evaluation())
            documents.save(path / "evaluation_documents.json", spoken)
            (path / "evaluation.json").write_text(json.dumps(evaluate(model, spoken)))
            (path / "follow.json").write_text(json.dumps(train(model)))
            plain_pretraining.write(path, folder)
        if name in POLICIES:
            plain_peft.write(build(name), _architecture(path / "hf"), path)
            plain_rewards.write(build(name), path, folder / f"{name}-reward")
            plain_on_policy.write(path, folder / f"{name}-reward")
    for name in FAMILY_MODELS:
        build(name).save_pretrained(folder / name / "hf")
    return folder


def make_families(folder: Path) -> Path:
    """Writes the models of the families that are like Llama: what `make` does, and gradients.npz.

    Checkpoints by rank are only of those that Megatron-LM has.
    """
    from tests.parallel import plain_peft

    for name in FAMILY_MODELS:
        path = folder / name
        model = build(name)
        model.save_pretrained(path / "hf")
        options = {"load": path / "hf", "model": _architecture(path / "hf"), "verify": "none"}
        targets: list[dict[str, Any]] = [{"save": path / "mcore"}]
        if name.startswith(("mistral", "qwen2")):
            targets.append({"save": path / "legacy", "format": "legacy", "tp": 2, "pp": 4})
        for target in targets:
            convert.run("hf2mg", ConvertOptions.model_validate(options | target))
        np.save(path / "logits.npy", logits(model).numpy())
        np.savez(path / "gradients.npz", **gradients(model))
        (path / "follow.json").write_text(json.dumps(train(model)))
        plain_peft.write(build(name), _architecture(path / "hf"), path)
    return folder


def gradients(model: Any) -> dict[str, Any]:
    """Of the mean loss of a step's documents, by Hugging Face's names."""
    cross_entropy(model, documents.of_step(0, count=4))[0].backward()
    found = {name: p.grad.numpy().copy() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def build(name: str) -> Any:
    """A seeded model; norms and biases are random too, so that each of them matters."""
    torch.manual_seed(sum(name.encode()))
    if name == "bloom":
        config: Any = BloomConfig(
            n_layer=4,
            hidden_size=48,
            n_head=6,  # not a power of two: the slopes of ALiBi have a rule of their own
            vocab_size=documents.VOCAB_SIZE,
            initializer_range=0.1,
        )
        model: Any = BloomForCausalLM(config)
    elif name in FAMILY_MODELS:
        model = _family(name)
    else:
        config = LlamaConfig(
            num_hidden_layers=4,
            hidden_size=48,
            num_attention_heads=6,
            num_key_value_heads=2 if name == "llama-gqa" else 6,
            intermediate_size=88,
            vocab_size=documents.VOCAB_SIZE,
            max_position_embeddings=128,
            rms_norm_eps=1e-5,
            tie_word_embeddings=name == "llama-tied",
            initializer_range=0.1,
        )
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def _family(name: str) -> Any:
    """Grouped queries in all of them; three scales of rotary frequencies in Llama 3's."""
    family, _, tied = name.partition("-")
    of_family: dict[str, dict[str, Any]] = {
        "llama3": {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,  # a turn in 6, 30, 140 and 664 tokens
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
        "mistral": {"head_dim": 16, "sliding_window": None},
        "qwen2": {},
        "qwen3": {"head_dim": 12},
    }
    config = AutoConfig.for_model(
        {"llama3": "llama"}.get(family, family),
        num_hidden_layers=4,
        hidden_size=48,
        num_attention_heads=6,
        num_key_value_heads=2,
        intermediate_size=88,
        vocab_size=documents.VOCAB_SIZE,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        tie_word_embeddings=bool(tied),
        initializer_range=0.1,
        **of_family[family],
    )
    return AutoModelForCausalLM.from_config(config)


def _architecture(path: Path) -> Model:
    from alignctl.checkpoints.find import find

    return find(path, vocab_divisor=documents.VOCAB_DIVISOR).model


def logits(model: Any) -> Tensor:
    """Logits of the evaluation documents, each run alone, laid end to end `[T, V]`."""
    with torch.no_grad():
        rows = [
            model(torch.from_numpy(document.tokens[None, :-1].astype(np.int64))).logits[0]
            for document in documents.of_evaluation()
        ]
    return torch.cat(rows)


def padded(batch: list[Document]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, attention mask and shifted targets `[B, L]`, padded on the right."""
    length = max(len(document.tokens) for document in batch) - 1
    tokens = torch.zeros(len(batch), length, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    targets = torch.full_like(tokens, IGNORE)
    for row, document in enumerate(batch):
        count = len(document.tokens) - 1
        tokens[row, :count] = torch.from_numpy(document.tokens[:-1].astype(np.int64))
        mask[row, :count] = 1
        learned = torch.from_numpy(document.supervised[1:])
        shifted = torch.from_numpy(document.tokens[1:].astype(np.int64))
        targets[row, :count] = torch.where(learned, shifted, IGNORE)
    return tokens, mask, targets


def cross_entropy(
    model: Any, batch: list[Document], *, reduction: Literal["mean", "sum"] = "mean"
) -> tuple[Tensor, Tensor]:
    """Loss of one padded batch, and the number of learned tokens ranked first."""
    tokens, mask, targets = padded(batch)
    found = model(tokens, attention_mask=mask).logits
    loss = torch.nn.functional.cross_entropy(
        found.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction=reduction
    )
    return loss, (found.argmax(-1) == targets).sum()


def in_the_models_words(model: Any, originals: list[Document]) -> list[Document]:
    """Every third token is the one the model expects: random ones it would never get right."""
    spoken = []
    for document in originals:
        tokens = torch.from_numpy(document.tokens.astype(np.int64))
        for place in range(2, len(tokens), 3):
            with torch.no_grad():
                tokens[place] = model(tokens[None, :place]).logits[0, -1].argmax()
        spoken.append(Document(tokens.numpy().astype(np.int32), document.supervised, document.row))
    return spoken


def evaluate(model: Any, batch: list[Document]) -> dict[str, float]:
    """Token-weighted mean loss and accuracy, the documents one by one."""
    total = hits = count = 0.0
    with torch.no_grad():
        for document in batch:
            loss, right = cross_entropy(model, [document], reduction="sum")
            total, hits = total + float(loss), hits + float(right)
            count += int(document.supervised[1:].sum())
    return {"loss": total / count, "token_accuracy": hits / count, "weight": count}


def train(model: Any) -> dict[str, list[float]]:
    """What anybody would write: padding, torch.optim.AdamW, clipping; no decay of vectors."""
    settings = documents.FOLLOW_OPTIMIZER
    assert settings.clip_grad is not None
    optimizer = adamw(model, settings)
    losses, norms = [], []
    model.train()
    for step in range(documents.FOLLOW_STEPS):
        loss, _ = cross_entropy(model, documents.of_step(step, count=4))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.step()
        losses.append(loss.item())
        norms.append(float(norm))
    return {"loss": losses, "grad_norm": norms}


def adamw(model: Any, settings: Optimizer) -> torch.optim.AdamW:
    """AdamW with weight decay for matrices alone, as Megatron has it."""
    parameters = list(model.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )


def learning_rate(step: int) -> float:
    """Linear warm-up over 4 steps, 0 to 2e-3, then a cosine to 2e-4 at step 20, as Megatron's."""
    if step < 4:
        return 2e-3 * step / 4
    return 2e-4 + 1.8e-3 * (1 + float(np.cos(np.pi * (step - 4) / 16))) / 2


def load(path: Path) -> Any:
    """A model in fp32 from a Hugging Face folder."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
