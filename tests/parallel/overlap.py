"""The jobs of traffic between copies that goes on behind compute, with buckets of a few weights."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from tests.parallel import documents
from tests.parallel.cases import Case

if TYPE_CHECKING:
    from alignctl.engines.megatron.engine import MegatronEngine

BUCKET = 20_000
"""Weights of a bucket, where Megatron's 40 million would hold every tiny model."""
STEPS = 3


class _UnderWay:
    """An observer of the schedule: which sums are under way when micro batches have ended."""

    def __init__(self, wrapped: Any) -> None:
        self.wrapped, self.found = wrapped, list[list[bool]]()

    def start_pass(self, batches: Any, *, forward_only: bool) -> None:
        """See `Observer`."""

    def finish_batches(self) -> None:
        """See `Observer`."""
        groups = self.wrapped.bucket_groups
        self.found.append([group.grad_reduce_handle is not None for group in groups])


def overlap(case: Case, folder: Path) -> dict[str, Any]:
    """Steps without it, with it, and with it stopped after one step and resumed.

    And what is said of buckets of a matrix or vector each.
    """
    import torch
    from megatron.core.distributed import DistributedDataParallelConfig

    from alignctl.checkpoints.find import find
    from alignctl.engines.checkpoints import Checkpoints, resume
    from alignctl.engines.megatron import engine as module
    from alignctl.engines.megatron.weights import hf_weights
    from tests.parallel.jobs import engine_of

    small = mock.patch.object(
        module,
        "DistributedDataParallelConfig",
        partial(DistributedDataParallelConfig, bucket_size=BUCKET),
    )
    off = {"overlap_grad_reduce": False, "overlap_param_gather": False}
    plain_case = case.model_copy(update={"parallel": case.parallel.model_copy(update=off)})
    with small:
        plain, engine, stopped, resumed = (
            engine_of(each, folder, documents.TRAIN_OPTIMIZER)
            for each in (plain_case, case, case, case)
        )
    watch = engine.observer = _UnderWay(engine._wrapped)
    numbers = [_steps(case, each, range(STEPS)) for each in (plain, engine)]
    before = [parameter.detach().clone() for parameter in engine.model.parameters()]
    engine.gather_weights()
    changed = [
        not torch.equal(a, b) for a, b in zip(before, engine.model.parameters(), strict=True)
    ]

    _steps(case, stopped, range(1))
    source = find(folder / case.model / "hf", vocab_divisor=documents.VOCAB_DIVISOR)
    saved = Checkpoints(folder / case.name / "checkpoints", source).save(stopped, 1)
    resume(resumed, saved)
    _steps(case, resumed, range(1, STEPS))
    pushed, expected = dict(hf_weights(resumed)), dict(hf_weights(engine))
    plainly = dict(hf_weights(plain))
    return {
        "refused": _refusal(case, folder),
        "numbers": numbers,
        "under_way": watch.found,
        "is_gathered_late": any(changed),
        "resumed_differently": [
            n for n, each in expected.items() if not torch.equal(each, pushed[n])
        ],
        "off": max((each - plainly[n]).abs().max().item() for n, each in expected.items()),
    }


def _steps(case: Case, engine: "MegatronEngine", steps: range) -> list[list[float]]:
    """Loss and gradient norm of training steps, and the loss of a validation after each."""
    from alignctl.algorithms.cross_entropy import CrossEntropy

    share = {"dp_rank": engine.data_parallel_rank, "dp_size": engine.data_parallel_size}
    found = []
    for step in steps:
        batches = documents.micro_batches(documents.of_step(step, count=8), case.grouping, **share)
        result = engine.train_step(batches, CrossEntropy(), learning_rate=1e-3)
        measured = engine.evaluate(batches, CrossEntropy()).loss if step < STEPS - 1 else 0.0
        assert result.grad_norm is not None
        found.append([result.loss, result.grad_norm, measured])
    return found


def _refusal(case: Case, folder: Path) -> str:
    """What is said of buckets of a matrix or vector each; not asked where a stage may have none."""
    from megatron.core.distributed import DistributedDataParallelConfig

    from alignctl.engines.megatron import engine as module
    from alignctl.errors import UserError
    from tests.parallel.jobs import engine_of

    single = partial(DistributedDataParallelConfig, bucket_size=1)
    with mock.patch.object(module, "DistributedDataParallelConfig", single):
        try:
            if case.parallel.pp == 1:
                engine_of(case, folder, documents.TRAIN_OPTIMIZER)
        except UserError as error:
            return error.message
    return ""
