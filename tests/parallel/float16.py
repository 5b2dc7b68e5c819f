"""The jobs of float16: what it computes, and what it does when a gradient does not fit."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alignctl.config.precision import LossScale
from tests.parallel import documents
from tests.parallel.cases import Case

FITTING = LossScale(initial=2.0**10)
TOO_LARGE = LossScale(initial=2.0**20, growth_interval=3)
STEPS = 16
SAVED = (3, 11)
"""Steps after which a run is taken up again from its checkpoint; the first has left all out."""


def float16(case: Case, folder: Path) -> dict[str, Any]:
    """The steps of `jobs.train`, at a scale that fits."""
    from tests.parallel.jobs import engine_of

    engine = engine_of(case, folder, documents.TRAIN_OPTIMIZER, loss_scale=FITTING)
    found = [_step(case, engine, step) for step in range(documents.TRAIN_STEPS)]
    return {
        "loss": [result.loss for result in found],
        "grad_norm": [result.grad_norm for result in found],
        "skipped": engine.skipped_steps,
        "dtypes": sorted({str(parameter.dtype) for parameter in engine.model.parameters()}),
    }


def overflow(case: Case, folder: Path) -> dict[str, Any]:
    """Steps from a scale that is too large, at one go and with two stops between them."""
    import torch.distributed as dist

    from alignctl.checkpoints.find import find
    from alignctl.engines.checkpoints import Checkpoints, resume
    from tests.parallel.jobs import engine_of

    source = find(folder / case.model / case.load, vocab_divisor=documents.VOCAB_DIVISOR)
    checkpoints = folder / case.name / "checkpoints"
    engine = engine_of(case, folder, documents.TRAIN_OPTIMIZER, loss_scale=TOO_LARGE)
    at_one_go = _steps(case, engine, range(STEPS))
    bits = _bits(engine)
    resumed = []
    for first, last in zip((0, *SAVED), (*SAVED, STEPS), strict=True):
        engine = engine_of(case, folder, documents.TRAIN_OPTIMIZER, loss_scale=TOO_LARGE)
        if first:
            assert resume(engine, checkpoints / f"iter_{first:07d}") == first
        resumed += _steps(case, engine, range(first, last))
        Checkpoints(checkpoints, source).save(engine, last)
    rank = dist.get_rank()
    return {
        f"steps_{rank}": at_one_go,
        f"resumed_{rank}": resumed,
        f"is_same_{rank}": _bits(engine) == bits,
    }


def apart(case: Case, folder: Path) -> dict[str, Any]:
    """A step whose gradient overflows on the last rank alone; then one at the least scale."""
    import torch.distributed as dist

    from alignctl.engines.protocol import NonFiniteError
    from tests.parallel.jobs import engine_of

    scale = LossScale(initial=2.0, minimum=1.0, hysteresis=1)
    engine = engine_of(case, folder, documents.TRAIN_OPTIMIZER, loss_scale=scale)
    before = _bits(engine)
    if dist.get_rank() == case.world - 1:
        # Of its own part of the pipeline, or of the layers: weights that other ranks do not have.
        own = [p for n, p in engine.model.named_parameters() if n.endswith("linear_proj.weight")]
        own[0].register_hook(lambda gradient: gradient * float("inf"))
    result = _step(case, engine, 0)
    found = [result.grad_norm, engine.loss_scale, engine.skipped_steps]
    message = ""
    try:
        _step(case, engine, 1)
    except NonFiniteError as error:
        message = error.message
    rank = dist.get_rank()
    return {
        f"found_{rank}": found,
        f"message_{rank}": message,
        f"is_same_{rank}": _bits(engine) == before,
    }


def _steps(case: Case, engine: Any, steps: Iterable[int]) -> list[Any]:
    """Loss, norm, then scale and steps left out so far, and whether the step changed anything."""
    found = []
    for step in steps:
        before = _bits(engine)
        result = _step(case, engine, step)
        is_changed = _bits(engine) != before
        numbers = result.loss, result.grad_norm, engine.loss_scale, engine.skipped_steps
        found.append([*numbers, is_changed])
    return found


def _step(case: Case, engine: Any, step: int) -> Any:
    from alignctl.algorithms.cross_entropy import CrossEntropy

    batches = documents.micro_batches(
        documents.of_step(step, count=8),
        case.grouping,
        dp_rank=engine.data_parallel_rank,
        dp_size=engine.data_parallel_size,
    )
    rate = documents.TRAIN_OPTIMIZER.lr
    return engine.train_step(batches, CrossEntropy(), learning_rate=rate)


def _bits(engine: Any) -> list[bytes]:
    """This rank's weights, master weights and moments that are not zero, in no order."""
    import torch

    from alignctl.engines.megatron import optimizer as megatron_optimizer

    kept = [*engine.model.parameters(), *megatron_optimizer.tensors(engine.optimizer)]
    changed = [each.detach().flatten() for each in kept if each.count_nonzero()]
    return sorted(each.view(torch.uint8).numpy().tobytes() for each in changed)
