"""The job of DPO: prompts with two or three answers, at every layout."""

from pathlib import Path
from typing import Any

import numpy as np

from alignctl.data.batch import Document, PreferenceBatch
from tests.parallel import documents
from tests.parallel.cases import Case

STEPS, PROMPTS = 3, 4
SIZES = (2, 3, 2, 2)
"""Answers to each prompt of a step."""
SCORES = (0.5, 0.1, 0.1)
"""How good they are; the last two of three are a tie."""


def groups_of_step(step: int) -> list[list[Document]]:
    """Documents of 3 to 41 tokens; those of a group share none of their prompt, which no loss
    looks at."""
    answers = iter(documents.make(sum(SIZES), seed=300 + step))
    return [[next(answers) for _ in range(size)] for size in SIZES]


def micro_batches(step: int, size: int, *, dp_rank: int, dp_size: int) -> list[PreferenceBatch]:
    """One rank's share, `size` groups in a micro batch; fillers where it runs out."""
    groups = groups_of_step(step)
    scores = [SCORES[: len(group)] for group in groups]
    parts = [range(start, min(start + size, PROMPTS)) for start in range(0, PROMPTS, size)]
    most = -(-len(parts) // dp_size)
    mine = [list(part) for part in parts[dp_rank::dp_size]]
    return [
        PreferenceBatch.from_groups(
            [groups[g] for g in part], np.asarray([s for g in part for s in scores[g]])
        )
        for part in mine + [[]] * (most - len(mine))
    ]


def dpo(case: Case, folder: Path) -> dict[str, Any]:
    """Loss, gradient norm and metrics of a few steps."""
    from alignctl.algorithms.dpo import DPO
    from tests.parallel.jobs import engine_of

    engine = engine_of(case, folder, documents.TRAIN_OPTIMIZER)
    reference = -100 * np.random.default_rng(6).random(sum(SIZES))
    loss = DPO(reference, "sigmoid", beta=0.2, label_smoothing=0.1, nll=0.3)
    found = [
        engine.train_step(
            micro_batches(
                step,
                int(case.grouping),
                dp_rank=engine.data_parallel_rank,
                dp_size=engine.data_parallel_size,
            ),
            loss,
            learning_rate=documents.TRAIN_OPTIMIZER.lr,
        )
        for step in range(STEPS)
    ]
    return {
        "loss": [result.loss for result in found],
        "grad_norm": [result.grad_norm for result in found],
        "weight": [result.weight for result in found],
        "margin": [result.metrics["margin"] for result in found],
    }
