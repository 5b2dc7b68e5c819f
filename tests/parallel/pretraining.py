"""Twenty steps of pretraining as a rank takes them, on the sequences of a prepared folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.parallel import documents
from tests.parallel.plain_pretraining import (
    BATCH,
    EOD,
    NUM_SAMPLES,
    SEED,
    SEQ_LENGTH,
    WEIGHTS,
    corpora,
)

if TYPE_CHECKING:
    from tests.parallel.cases import Case

Result = dict[str, Any]


def pretrain(case: "Case", folder: Path) -> Result:
    """Attention reaches over the whole sequence."""
    return _course(case, folder, is_apart=False)


def pretrain_apart(case: "Case", folder: Path) -> Result:
    """Attention stays inside a document."""
    return _course(case, folder, is_apart=True)


def _course(case: "Case", folder: Path, *, is_apart: bool) -> Result:
    import torch.distributed as dist

    from alignctl.algorithms.cross_entropy import CrossEntropy
    from alignctl.algorithms.schedule import learning_rate
    from alignctl.corpus.samples import Part, PretrainData, Recipe, write
    from alignctl.data import order
    from tests.parallel.jobs import engine_of

    prepared = folder / f"prepared_{case.world}_{case.name}"
    if dist.get_rank() == 0:
        prepared.mkdir()
        parts = zip(corpora(folder), WEIGHTS, strict=True)
        recipe = Recipe(
            train=tuple(Part(prefix=str(prefix), weight=weight) for prefix, weight in parts),
            validation=(),
            split="1,0,0",
            seq_length=SEQ_LENGTH,
            seed=SEED,
            num_samples=NUM_SAMPLES,
            epoch_samples=NUM_SAMPLES,
            vocab_size=documents.VOCAB_SIZE,
            eod=EOD,
            cross_document_attention=not is_apart,
        )
        write(recipe, prepared)
    dist.barrier()
    data = PretrainData.open(prepared)
    settings, count = documents.FOLLOW_OPTIMIZER, documents.FOLLOW_STEPS
    engine = engine_of(case, folder, settings)
    found = []
    for step in range(count):
        batches = order.train_batches(
            data.train,
            step=step,
            seed=1,
            global_batch_size=BATCH,
            micro_batch_size=int(case.grouping),
            dp_rank=engine.data_parallel_rank,
            dp_size=engine.data_parallel_size,
        )
        rate = learning_rate(step, settings, total_steps=count)
        found.append(engine.train_step(batches, CrossEntropy(), learning_rate=rate))
    return {
        "loss": [result.loss for result in found],
        "grad_norm": [result.grad_norm for result in found],
        "weight": [result.weight for result in found],
    }
