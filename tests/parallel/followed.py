"""Twenty steps over pairs that TRL's trainers take too: the rows, and the jobs of ours."""

from pathlib import Path
from typing import Any

import numpy as np

from alignctl.config.sections import DPOLoss, Optimizer
from alignctl.data.batch import Document, PreferenceBatch
from tests.parallel import documents
from tests.parallel.cases import Case

STEPS, PAIRS = 20, 4
OPTIMIZER = Optimizer(lr=5e-4, weight_decay=0.1, clip_grad=1.0, beta2=0.95)
BETA, CENTERING = 0.1, 0.01
FIRST_TOKEN, LAST_TOKEN = 4, documents.VOCAB_SIZE - 1
"""Tokens below are the tokenizer's special ones, of which TRL pads with one; answers end alike."""


def rows() -> list[dict[str, list[int]]]:
    """A prompt of 2 to 9 tokens with a better and a worse answer of 2 to 24, as TRL has them."""
    random = np.random.default_rng(11)

    def tokens(least: int, most: int) -> list[int]:
        count = int(random.integers(least, most))
        return [int(token) for token in random.integers(FIRST_TOKEN, LAST_TOKEN, size=count)]

    return [
        {
            "prompt_ids": tokens(2, 10),
            "chosen_ids": [*tokens(1, 24), LAST_TOKEN],
            "rejected_ids": [*tokens(1, 24), LAST_TOKEN],
        }
        for _ in range(STEPS * PAIRS)
    ]


def reward_follow(case: Case, folder: Path) -> dict[str, Any]:
    """Loss and gradient norm of each step of a reward model."""
    from alignctl.algorithms.reward import BradleyTerry
    from tests.parallel.jobs import engine_of

    engine = engine_of(case, folder, OPTIMIZER)
    return _course(case, engine, BradleyTerry(centering=CENTERING))


def dpo_follow(case: Case, folder: Path) -> dict[str, Any]:
    """The same of a policy; the reference is what it is at the start."""
    from alignctl.algorithms.dpo import DPO
    from tests.parallel.jobs import engine_of

    engine = engine_of(case, folder, OPTIMIZER)
    batches = [batch for step in range(STEPS) for batch in _micro_batches(case, step, engine)]
    reference = engine.document_outputs(batches, 2 * PAIRS * STEPS)
    assert np.isfinite(reference).all()
    return _course(case, engine, DPO(reference, **DPOLoss(beta=BETA).model_dump()))


def _course(case: Case, engine: Any, loss: Any) -> dict[str, Any]:
    found = [
        engine.train_step(_micro_batches(case, step, engine), loss, learning_rate=OPTIMIZER.lr)
        for step in range(STEPS)
    ]
    return {
        "loss": [result.loss for result in found],
        "grad_norm": [result.grad_norm for result in found],
    }


def _micro_batches(case: Case, step: int, engine: Any) -> list[PreferenceBatch]:
    """One rank's share of a step, as many pairs in each as the grouping says."""
    groups = [_pair(number, row) for number, row in enumerate(rows())]
    size, share = int(case.grouping), PAIRS // engine.data_parallel_size
    first = step * PAIRS + engine.data_parallel_rank * share
    return [
        PreferenceBatch.from_groups(groups[start : start + size], np.tile([1.0, 0.0], size))
        for start in range(first, first + share, size)
    ]


def _pair(number: int, row: dict[str, list[int]]) -> list[Document]:
    prompt = row["prompt_ids"]
    answers = (row["chosen_ids"], row["rejected_ids"])
    return [
        Document(
            np.asarray(prompt + answer, np.int32),
            np.arange(len(prompt + answer)) >= len(prompt),
            2 * number + place,
        )
        for place, answer in enumerate(answers)
    ]
