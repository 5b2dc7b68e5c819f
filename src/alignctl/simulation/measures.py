"""What an engine holds, and what a part of a step takes beyond that."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

from torch import Tensor

from alignctl.config.run import TrainingConfig
from alignctl.data.batch import TokenBatch
from alignctl.engines import megatron_optimizer
from alignctl.engines.megatron import MegatronEngine
from alignctl.planning.memory import Held
from alignctl.planning.report import Phase
from alignctl.simulation.ledger import Ledger


def held(engine: MegatronEngine) -> Held:
    """What a model keeps between its steps; the optimizer's state must be there."""
    weights = list(engine.model.parameters())
    gradients = engine.gradient_buffers()
    optimizer = [] if engine.optimizer is None else megatron_optimizer.tensors(engine.optimizer)
    known = _storages(weights)
    state = {key: size for key, size in _storages(optimizer).items() if key not in known}
    return Held(sum(known.values()), sum(_storages(gradients).values()), sum(state.values()))


def make_state(engine: MegatronEngine) -> None:
    """Has the optimizer make its moments, which it does in its first step."""
    engine._wrapped.zero_grad_buffer()
    engine.optimizer.prepare_grads()
    engine.optimizer.step_with_ready_grads()


@dataclass
class Book:
    """The phases of a rank's step.

    Attributes:
        ledger: Of the rank.
        phases: The largest of each name so far.
    """

    ledger: Ledger
    phases: dict[str, Phase] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measures a part of the step; of parts with one name the largest counts."""
        before = Counter(self.ledger.sent)
        with self.ledger.peak() as peak:
            yield
        found = Phase(
            peak=peak.total,
            activations=peak.total - peak.start,
            logits=peak.logits,
            sampler=peak.held,
            sent=dict(self.ledger.sent - before),
        )
        if name not in self.phases or found.peak > self.phases[name].peak:
            self.phases[name] = found


def micro_batches(config: TrainingConfig, stage: int) -> int:
    """As many as show the peak.

    In 1F1B a stage has pp - stage of them under way, never more. When it takes the one after these,
    Megatron's schedule still has names for what it got and sent for the one before.
    """
    return min(config.num_micro_batches, config.parallel.pp - stage + 1)


def watch_schedule(engine: MegatronEngine, config: TrainingConfig, ledger: Ledger) -> None:
    """Tells the ledger what pipeline stages exchange, and counts as many micro batches as are real.

    What is sent in a training step's micro batches is scaled to the step that the run takes; what
    is sent once for all of them stays as it is.
    """
    schedule, finalize = engine._schedule, engine._config.finalize_model_grads_func
    started: Counter[str] = Counter()
    count = 1

    def watched(forward: Any, batches: Sequence[TokenBatch], *, forward_only: bool) -> None:
        nonlocal started, count
        tp = config.parallel.tp if config.parallel.sequence_parallel else 1
        hidden = engine.architecture.hidden_size
        shapes = [(-(-batch.num_tokens // tp), 1, hidden) for batch in batches]
        # Those of a training step are equal, and also come back as gradients.
        ledger.boundaries = iter(shapes) if forward_only else repeat(shapes[0])
        started, count = Counter(ledger.sent), len(batches)
        schedule(forward, batches, forward_only=forward_only)

    def scaled(*args: Any, **kwargs: Any) -> None:
        for kind, total in (ledger.sent - started).items():
            ledger.sent[kind] += total * (config.num_micro_batches - count) // count
        finalize(*args, **kwargs)

    engine._schedule = watched  # type: ignore[method-assign]
    engine._config.finalize_model_grads_func = scaled


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes of each storage, by its identity."""
    storages = [each.untyped_storage() for each in tensors]
    return {each._cdata: each.nbytes() for each in storages}
