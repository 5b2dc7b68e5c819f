"""What an engine holds, and what a part of a step takes beyond that."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat

from torch import Tensor

from alignctl.config.run import TrainingConfig
from alignctl.config.sections import Parallel
from alignctl.data.batch import TokenBatch
from alignctl.engines.megatron import optimizer as megatron_optimizer
from alignctl.engines.megatron.engine import MegatronEngine
from alignctl.planning.job import stage_of
from alignctl.planning.memory import Held
from alignctl.planning.report import Phase
from alignctl.simulation.memory_tracker import MemoryTracker


def held(engine: MegatronEngine) -> Held:
    """Measure what a model keeps between its steps; the optimizer's state must be there."""
    weights = list(engine.model.parameters())
    gradients = engine.gradient_buffers()
    optimizer = [] if engine.optimizer is None else megatron_optimizer.tensors(engine.optimizer)
    known = _storages(weights)
    state = {key: size for key, size in _storages(optimizer).items() if key not in known}
    return Held(sum(known.values()), sum(_storages(gradients).values()), sum(state.values()))


def make_state(engine: MegatronEngine) -> None:
    """Make the optimizer's moments, which it makes by itself only in its first step."""
    engine.fill_optimizer()


@dataclass
class PhaseRecorder:
    """The phases of a rank's step.

    Attributes:
        tracker: Of the rank.
        phases: The largest of each name so far.
    """

    tracker: MemoryTracker
    phases: dict[str, Phase] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure a part of the step; of parts with one name the largest counts."""
        before = Counter(self.tracker.sent)
        with self.tracker.peak() as peak:
            yield
        found = Phase(
            peak=peak.total,
            activations=peak.total - peak.start,
            logits=peak.logits,
            sampler=peak.held,
            sent=dict(self.tracker.sent - before),
        )
        if name not in self.phases or found.peak > self.phases[name].peak:
            self.phases[name] = found


def micro_batches(config: TrainingConfig, layout: Parallel, rank: int) -> int:
    """Count as many micro batches as show the peak of a model of this layout.

    In 1F1B a stage has pp - stage of them under way, never more. When it takes the one after these,
    Megatron's schedule still has names for what it got and sent for the one before.
    """
    stage = stage_of(config, layout, rank)
    return min(config.micro_batches_of(layout), layout.pp - stage + 1)


@dataclass(eq=False)
class _Watch:
    """Tells the tracker what pipeline stages exchange, and counts the micro batches that are real.

    What is sent in a training step's micro batches is scaled to the step that the run takes; what
    is sent once for all of them stays as it is.

    Attributes:
        engine: The model.
        config: The run.
        tracker: Of the rank.
        before: Bytes sent before the pass, in the groups of each kind.
        count: Micro batches of the pass.
    """

    engine: MegatronEngine
    config: TrainingConfig
    tracker: MemoryTracker
    before: Counter[str] = field(default_factory=Counter)
    count: int = 1

    def start_pass(self, batches: Sequence[TokenBatch], *, forward_only: bool) -> None:
        """Set the shapes of what this stage will receive."""
        parallel = self.engine.parallel
        tp = parallel.tp if parallel.sequence_parallel else 1
        hidden_size = self.engine.architecture.hidden_size
        counts = [self.engine.count_computed(batch) for batch in batches]
        shapes = [(count // tp, 1, hidden_size) for count in counts]
        # Those of a training step are equal, and also come back as gradients.
        self.tracker.boundaries = iter(shapes) if forward_only else repeat(shapes[0])
        self.before, self.count = Counter(self.tracker.sent), len(batches)

    def finish_batches(self) -> None:
        """Count what the micro batches sent for those that were left out."""
        left_out = self.config.micro_batches_of(self.engine.parallel) - self.count
        for kind, total in (self.tracker.sent - self.before).items():
            self.tracker.sent[kind] += total * left_out // self.count


def watch_schedule(engine: MegatronEngine, config: TrainingConfig, tracker: MemoryTracker) -> None:
    """Note in the tracker what the engine's pipeline stage exchanges; see `_Watch`."""
    engine.observer = _Watch(engine, config, tracker)


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Count the bytes of each storage, by its identity."""
    storages = [each.untyped_storage() for each in tensors]
    return {each._cdata: each.nbytes() for each in storages}
