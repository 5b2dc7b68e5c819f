"""What transformers makes of the prompts of `preferences.py`: scores, losses, log-probabilities."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification

from alignctl.data.batch import Document
from tests.parallel import documents, reference
from tests.parallel.preferences import SCORES, STEPS, groups_of_step
from tests.parallel.rewards import CENTERING, MARGIN


def write(policy: Any, beside: Path, folder: Path) -> None:
    """Writes what DPO starts from, and a reward model with its course.

    Args:
        policy: The model.
        beside: Gets answer_logprobs.json, the summed log-probabilities of the first step's answers.
        folder: Gets hf/, the policy with a score head in the place of its output layer, and
            course.json.
    """
    answers = [answer for group in groups_of_step(0) for answer in group]
    (beside / "answer_logprobs.json").write_text(json.dumps(_logprobs(policy, answers)))
    policy.save_pretrained(folder / "policy")
    config = AutoConfig.from_pretrained(folder / "policy", num_labels=1)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder / "policy", config=config, dtype=torch.float32
    )
    torch.manual_seed(3)
    torch.nn.init.normal_(model.score.weight, std=0.3)
    model.eval().save_pretrained(folder / "hf")
    (folder / "course.json").write_text(json.dumps(_plain_course(model)))


def _score(model: Any, document: Document) -> Tensor:
    """The score of one document, which transformers reads at its last token; a scalar."""
    score: Tensor = model(torch.from_numpy(document.tokens[None].astype(np.int64))).logits[0, 0]
    return score


def _plain_course(model: Any) -> dict[str, list[float]]:
    """What `reward` computes, pair by pair; torch.optim.AdamW."""
    settings = documents.TRAIN_OPTIMIZER
    optimizer = reference.adamw(model, settings)
    found: dict[str, list[float]] = {"scores": [], "loss": [], "grad_norm": []}
    for step in range(STEPS):
        total = torch.zeros(())
        groups = groups_of_step(step)
        for group in groups:
            scores = [_score(model, document) for document in group]
            if step == 0:
                found["scores"] += [score.item() for score in scores]
            pairs = [(i, j) for i, j in combinations(range(len(group)), 2) if SCORES[i] > SCORES[j]]
            for i, j in pairs:
                better, worse = scores[i], scores[j]
                margin = MARGIN * (SCORES[i] - SCORES[j])
                loss = torch.log1p(torch.exp(worse - better + margin))
                total = total + (loss + CENTERING * (better + worse) ** 2) / len(pairs)
        optimizer.zero_grad()
        (total / len(groups)).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad or 0.0)
        optimizer.step()
        found["loss"].append(total.item() / len(groups))
        found["grad_norm"].append(float(norm))
    return found


def _logprobs(policy: Any, answers: list[Document]) -> list[float]:
    """Summed log-probability of the learned tokens of each document, every token an input."""
    found = []
    for document in answers:
        tokens = torch.from_numpy(document.tokens.astype(np.int64))
        with torch.no_grad():
            rows = policy(tokens[None]).logits[0].double().log_softmax(-1)
        each = rows[:-1].gather(1, tokens[1:, None])[:, 0]
        found.append(each[torch.from_numpy(document.supervised[1:])].sum().item())
    return found
