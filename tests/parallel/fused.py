"""The job of fused activations: every number twice, by torch's operators and by one function."""

from pathlib import Path
from typing import Any

from tests.parallel import documents
from tests.parallel.cases import Case


def fused(case: Case, folder: Path) -> dict[str, Any]:
    """Losses and norms of three steps, and outputs after them, of both."""
    return {activation: _measure(case, folder, activation) for activation in ("plain", "fused")}


def _measure(case: Case, folder: Path, activation: str) -> dict[str, Any]:
    from alignctl.algorithms.cross_entropy import CrossEntropy
    from alignctl.config.kernels import Kernels
    from alignctl.config.sections import Lora
    from tests.parallel.jobs import engine_of

    kernels = Kernels.model_validate({"activation": activation})
    lora = Lora(rank=4) if case.lora else None
    engine = engine_of(case, folder, documents.TRAIN_OPTIMIZER, lora=lora, kernels=kernels)
    share = {"dp_rank": engine.data_parallel_rank, "dp_size": engine.data_parallel_size}
    steps = [
        engine.train_step(
            documents.micro_batches(documents.of_step(step, count=8), case.grouping, **share),
            CrossEntropy(),
            learning_rate=documents.TRAIN_OPTIMIZER.lr,
        )
        for step in range(3)
    ]
    evaluated = documents.of_evaluation()
    batches = documents.micro_batches(evaluated, case.grouping, **share)
    return {
        "loss": [step.loss for step in steps],
        "grad_norm": [step.grad_norm for step in steps],
        "outputs": engine.document_outputs(batches, len(evaluated)).tolist(),
    }
