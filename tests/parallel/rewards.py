"""The jobs of reward models, and of a policy that is its own reference."""

from pathlib import Path
from typing import Any

from tests.parallel import documents
from tests.parallel.cases import Case
from tests.parallel.preferences import SIZES, STEPS, micro_batches

MARGIN, CENTERING = 0.7, 0.05


def reward(case: Case, folder: Path) -> dict[str, Any]:
    """Scores, and then loss, gradient norm and accuracy of a few steps."""
    from tests.parallel.jobs import engine_of

    return course(case, engine_of(case, folder, documents.TRAIN_OPTIMIZER))


def new_head(case: Case, folder: Path) -> dict[str, Any]:
    """The same with a policy that gets a head of two layers."""
    from tests.parallel.jobs import engine_of

    return course(case, engine_of(case, folder, documents.TRAIN_OPTIMIZER, head="pooler"))


def course(case: Case, engine: Any) -> dict[str, Any]:
    """Scores in two orders of the batches, then a few steps."""
    from alignctl.algorithms.reward import BradleyTerry

    share = {"dp_rank": engine.data_parallel_rank, "dp_size": engine.data_parallel_size}
    batches = micro_batches(0, int(case.grouping), **share)
    scores = engine.document_outputs(batches, sum(SIZES) + 1)
    backwards = engine.document_outputs(batches[::-1], sum(SIZES) + 1)
    found = [
        engine.train_step(
            micro_batches(step, int(case.grouping), **share),
            BradleyTerry(MARGIN, CENTERING),
            learning_rate=documents.TRAIN_OPTIMIZER.lr,
        )
        for step in range(STEPS)
    ]
    return {
        "scores": scores.tolist(),
        "scores_backwards": backwards.tolist(),
        "loss": [result.loss for result in found],
        "grad_norm": [result.grad_norm for result in found],
        "accuracy": [result.metrics["accuracy"] for result in found],
    }


def dpo_start(case: Case, folder: Path) -> dict[str, Any]:
    """The first step of a policy that is its own reference; and those log-probabilities."""
    from tests.parallel.jobs import engine_of

    return first_step(case, engine_of(case, folder, documents.TRAIN_OPTIMIZER))


def first_step(case: Case, engine: Any) -> dict[str, Any]:
    """One step of DPO on an engine's own log-probabilities."""
    from alignctl.algorithms.dpo import DPO
    from alignctl.config.sections import DPOLoss

    share = {"dp_rank": engine.data_parallel_rank, "dp_size": engine.data_parallel_size}
    batches = micro_batches(0, int(case.grouping), **share)
    reference = engine.document_outputs(batches, sum(SIZES))
    rate = documents.TRAIN_OPTIMIZER.lr
    result = engine.train_step(
        batches, DPO(reference, **DPOLoss().model_dump()), learning_rate=rate
    )
    return {
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "logprobs": reference.tolist(),
        **result.metrics,
    }
