"""A rank's work in the stages that learn from data: the engine, and the loop over its steps."""

import resource
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from alignctl.algorithms.loss import Loss
from alignctl.algorithms.schedule import learning_rate
from alignctl.checkpoints import manifest, origin, preflight
from alignctl.checkpoints.source import Source
from alignctl.config.run import TrainingConfig
from alignctl.config.sections import Head
from alignctl.corpus.samples import PretrainData
from alignctl.data import order, preview
from alignctl.data.preference_store import PreferenceData
from alignctl.data.store import SFTData
from alignctl.data.tokenizer import load_tokenizer
from alignctl.engines import checkpoints, rendezvous
from alignctl.engines.best import Watch
from alignctl.engines.conclusion import conclude
from alignctl.engines.metrics import StepMetrics
from alignctl.engines.protocol import Engine, NonFiniteError
from alignctl.errors import RunError
from alignctl.launch import worker
from alignctl.launch.fingerprint import fingerprint
from alignctl.reporting.metrics import MetricsWriter, measured, recorded
from alignctl.reporting.profiler import Profiler
from alignctl.run_folder import RunFolder
from alignctl.stages.shared.prepared import prepared_data
from alignctl.stages.shared.stage import Rows, Stage
from alignctl.stages.shared.step_clock import StepClock

Data = SFTData | PreferenceData | PretrainData
C = TypeVar("C", bound=TrainingConfig)

_ROWS_SHOWN = 8


@dataclass(frozen=True)
class Task:
    """What is trained, on what, and towards what.

    Attributes:
        config: The run.
        folder: Its folder.
        engine: The model with its optimizer.
        source: Where its weights came from.
        data: The prepared rows.
        loss: What is minimised, and measured on held-out rows.
        report: What a reader is told besides the loss.
        score_offset: Computes what is added to the scores of the trained model, for its manifest.
    """

    config: TrainingConfig
    folder: RunFolder
    engine: Engine
    source: Source
    data: Data
    loss: Loss
    report: Callable[[StepMetrics], dict[str, float]] = attrgetter("metrics")
    score_offset: "Callable[[Task], float] | None" = None

    @property
    def checkpoints(self) -> checkpoints.Checkpoints:
        """Folder in which the engine is saved."""
        config = self.config
        return checkpoints.Checkpoints(
            self.folder.checkpoints, self.source, config.tokenizer, config.checkpoint.keep
        )

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.config.total_steps(self.data.train.num_sequences)


@dataclass
class Progress:
    """Where the run is: what result.json tells at the end."""

    step: int
    total: int
    watch: Watch
    first_validation: float | None = None
    loss: float | None = None
    validation: dict[str, float] | None = None

    @property
    def is_done(self) -> bool:
        """True if no step is left, or patience has ended."""
        return self.step == self.total or self.watch.is_over

    @classmethod
    def recall(cls, task: Task, step: int) -> "Progress":
        """Restore where the run was at a step from its metrics: earlier attempts belong to it."""
        progress = cls(step=step, total=task.total_steps, watch=Watch.of(task.config))
        rows = recorded(task.folder, until=step)
        if step:
            progress.watch.recall(task.folder, rows, links=dist.get_rank() == 0)
        for row in rows:
            if row["kind"] == "train":
                progress.loss = row["loss"]
            elif row["kind"] == "validation":
                progress.validation = measured(row)
                if row["step"] == 0:
                    progress.first_validation = row["loss"]
        return progress


def open_preferences(path: Path, config: Any) -> PreferenceData:
    """Open the preferences of a run."""
    weights = config.data.weights.values()
    return PreferenceData.open(path, weights, share_prompts=config.batch.share_prompts)


OPENERS: dict[Rows, Callable[[Path, TrainingConfig], Data]] = {
    "documents": lambda path, config: SFTData.open(path, config.data.weights.values()),
    "preferences": open_preferences,
    "datasets": lambda path, _: PretrainData.open(path),
}
"""What opens prepared data of each kind."""


def run(
    stage: Stage[Any],
    config: TrainingConfig,
    folder: RunFolder,
    *,
    report: Callable[[StepMetrics], dict[str, float]] = attrgetter("metrics"),
    score_offset: Callable[[Task], float] | None = None,
) -> None:
    """Do one rank's work: load or resume, train, validate, save.

    Args:
        stage: The stage, which says what its data are and what is minimised.
        config: The run.
        folder: Its folder.
        report: As of `Task`, as is the next.
        score_offset: Computes what is added to the scores of the trained model.
    """
    config = initialize(config, folder)
    data = OPENERS[stage.rows](prepared_data(folder), config)
    checkpoint, source = newest_model(config, folder)
    # A reward model goes on with the head it has.
    head = source.head if source.role == "reward" else config.models["model"].head
    engine = build_engine(config, head)
    step = checkpoints.start(engine, source, checkpoint, seed=config.train.seed)
    assert stage.loss is not None
    loss = stage.loss(config)
    train(Task(config, folder, engine, source, data, loss, report, score_offset), step)


# ---- the engine ----


def initialize(config: C, folder: RunFolder) -> C:
    """Check that all ranks are there, and join the job's process groups, once per process.

    Returns:
        The configuration, with the exact folders of the models that the run has started from.

    Raises:
        UserError: A rank is about to run something else than the others.
        LostError: A rank is missing, or does not answer in one of its groups.
    """
    seed, timeout_minutes = config.train.seed, config.launch.timeout_minutes
    patience = config.launch.start_timeout_seconds
    rendezvous.join(
        fingerprint(config, folder), start_seconds=patience, timeout_minutes=timeout_minutes
    )
    groups = {} if dist.group.WORLD is None else {"whole job's": dist.group.WORLD}
    if config.engine == "deepspeed":
        from alignctl.engines.deepspeed import engine as deepspeed

        deepspeed.initialize(seed=seed, timeout_minutes=timeout_minutes)
    else:
        from alignctl.engines.megatron import cpu as megatron_cpu

        megatron_cpu.load()
        from alignctl.engines.megatron import groups as megatron_groups

        layouts = [role.parallel for role in config.models.values()]
        megatron_groups.initialize(layouts, seed=seed, timeout_minutes=timeout_minutes)
        groups |= megatron_groups.groups()
    rendezvous.check_groups(
        groups, start_seconds=patience, give_up=lambda error: worker.leave_failed(folder, error)
    )
    return origin.settled(config, folder)


def newest_model(config: TrainingConfig, folder: RunFolder) -> tuple[Path | None, Source]:
    """Find the checkpoint to go on from, None when the run starts; and that, or the model to load.

    Its config and tokenizer are those in the run folder: checkpoints are removed in time.
    """
    checkpoint = folder.latest_checkpoint()
    source = preflight.newest_model(config, checkpoint)
    return checkpoint, origin.with_own_files(source, folder)


def build_engine(config: TrainingConfig, head: Head) -> Engine:
    """Build the engine; its weights are not set."""
    if config.engine == "deepspeed":
        from alignctl.engines.deepspeed.engine import DeepSpeedEngine

        return DeepSpeedEngine(
            config.architecture,
            config.parallel,
            config.deepspeed,
            precision=config.precision,
            optimizer=config.optimizer,
            loss_scale=config.loss_scale,
            head=head,
            lora=config.lora,
        )
    from alignctl.engines.megatron.engine import MegatronEngine

    return MegatronEngine(
        config.architecture,
        config.parallel,
        precision=config.precision,
        seq_length=config.batch.seq_length,
        optimizer=config.optimizer,
        loss_scale=config.loss_scale,
        kernels=config.kernels,
        head=head,
        lora=config.lora,
    )


# ---- the loop ----


def train(task: Task, step: int, note: str | None = None) -> None:
    """Take the remaining steps; write metrics, checkpoints and, when all is done, result.json.

    Args:
        task: What is to be done.
        step: Steps taken so far.
        note: A remark for the reader of the log.
    """
    progress = Progress.recall(task, step)
    is_first, tracking = dist.get_rank() == 0, task.config.tracking.model_dump()
    writer = MetricsWriter(task.folder, enabled=is_first, step=step, tracking=tracking)
    profiler = Profiler(task.folder, task.config.profile.steps, enabled=is_first, step=step)
    with writer as metrics, profiler:
        metrics.start(step, progress.total)
        if note is not None:
            metrics.note(note)
        if step == 0:
            _show_a_sample(task, metrics)
        _take_steps(task, progress, metrics, profiler)
    if progress.is_done and dist.get_rank() == 0:
        _write_result(task, progress)
    dist.barrier()
    dist.destroy_process_group()


def _show_a_sample(task: Task, metrics: MetricsWriter) -> None:
    tokenizer = load_tokenizer(task.source.tokenizer_folder(task.config.tokenizer))
    if isinstance(task.data, PreferenceData):
        for label, document in task.data.train.first_pair().items():
            metrics.preview(preview.pieces(document, tokenizer), label)
    else:
        metrics.preview(preview.pieces(task.data.train.first(), tokenizer))


def _take_steps(task: Task, progress: Progress, metrics: MetricsWriter, profiler: Profiler) -> None:
    """Take the steps of the run, with validations and checkpoints between them."""
    if progress.step == 0:
        _validate(task, progress, metrics)
    while not progress.is_done:
        profiler.before(progress.step + 1)
        result = _step(task, progress, metrics)
        if trace := profiler.after(progress.step):
            metrics.note(f"profile: {trace}")
        if _conclude_step(task, progress, metrics, is_stop_requested=result.is_stop_requested):
            return


def _conclude_step(
    task: Task, progress: Progress, metrics: MetricsWriter, *, is_stop_requested: bool
) -> bool:
    """Validate and save where it is time; tell whether the run was asked to stop here."""
    return conclude(
        task.config,
        task.folder,
        progress.watch,
        progress.step,
        progress.total,
        validate=lambda: _validate(task, progress, metrics),
        save=lambda is_kept: _save(task, progress, metrics, needs_offset=is_kept),
        is_stop_requested=lambda: is_stop_requested,
        note=metrics.note,
    )


def _save(task: Task, progress: Progress, metrics: MetricsWriter, *, needs_offset: bool) -> None:
    """Write a checkpoint; of a reward model that others may score by, with what it is off by."""
    offset = task.score_offset(task) if needs_offset and task.score_offset else None
    path = task.checkpoints.save(task.engine, progress.step, score_offset=offset)
    metrics.checkpoint(progress.step, path)


def _step(task: Task, progress: Progress, metrics: MetricsWriter) -> StepMetrics:
    """Take one optimizer step: its batch, the training, the log."""
    config, engine = task.config, task.engine
    clock = StepClock(config, engine.head)
    batches = order.train_batches(
        task.data.train,
        step=progress.step,
        seed=config.train.seed,
        global_batch_size=config.batch.global_batch_size,
        micro_batch_size=config.batch.micro_batch_size,
        dp_rank=engine.data_parallel_rank,
        dp_size=engine.data_parallel_size,
        capacity=config.pack_capacity,
    )
    clock.note("data")
    taken = progress.step - engine.skipped_steps
    lr = learning_rate(taken, config.schedule, total_steps=progress.total)
    try:
        result = engine.train_step(
            batches,
            task.loss,
            learning_rate=lr,
            is_stop_requested=worker.stop_requested(task.folder),
        )
    except NonFiniteError as error:
        raise _with_culprits(error, task, progress) from error
    clock.note("training")
    progress.step += 1
    progress.loss = result.loss
    if progress.step % config.train.log_interval == 0 or progress.step == progress.total:
        row = {"loss": result.loss, **task.report(result), "lr": lr}
        if result.grad_norm is not None:
            row["grad_norm"] = result.grad_norm
        if engine.loss_scale is not None:
            row |= {"loss_scale": engine.loss_scale, "skipped_steps": engine.skipped_steps}
        metrics.train(
            progress.step,
            **row,
            **clock.row(result, batches),
            tokens=result.num_tokens,
            computed_tokens=result.num_computed_tokens,
            peak_memory_gib=_peak_memory() / 2**30,
        )
    return result


def _validate(task: Task, progress: Progress, metrics: MetricsWriter) -> bool:
    """Measure loss and metrics on the held-out rows, weighted as in training, always the same.

    Returns:
        Whether the model is better than ever before.
    """
    config, engine = task.config, task.engine
    if task.data.validation is None:
        return False
    limit = config.train.eval_batches
    batches = order.validation_batches(
        task.data.validation,
        micro_batch_size=config.batch.micro_batch_size,
        dp_rank=engine.data_parallel_rank,
        dp_size=engine.data_parallel_size,
        max_sequences=limit and limit * config.batch.global_batch_size,
        capacity=config.pack_capacity,
    )
    result = engine.evaluate(batches, task.loss)
    progress.validation = {"loss": result.loss, **task.report(result)}
    if progress.step == 0:
        progress.first_validation = result.loss
    metrics.validation(progress.step, **progress.validation)
    return progress.watch.observe(progress.step, progress.validation)


def _write_result(task: Task, progress: Progress) -> None:
    checkpoint = f"checkpoints/iter_{progress.step:07d}"
    result: dict[str, Any] = {
        "stage": task.config.stage,
        "steps": progress.step,
        "checkpoint": checkpoint,
        "loss": progress.loss,
        "first_validation_loss": progress.first_validation,
        "validation": progress.validation,
        **progress.watch.result,
    }
    if task.score_offset is not None:
        result["score_offset"] = manifest.read(task.folder.path / checkpoint).score_offset
    task.folder.write_result(result)


def _with_culprits(error: Exception, task: Task, progress: Progress) -> RunError:
    """Add to a failure the step, the rows of its batch and what is safe."""
    config, folder, data = task.config, task.folder, task.data
    sequences = data.train.taken(
        global_batch_size=config.batch.global_batch_size,
        seed=config.train.seed,
        step=progress.step,
    )
    # Answers to one prompt have one row.
    rows = list(dict.fromkeys(data.where(row) for row in data.train.batch(sequences.tolist()).rows))
    more = f" and {len(rows) - _ROWS_SHOWN} more" if len(rows) > _ROWS_SHOWN else ""
    saved = folder.latest_checkpoint()
    hint = "lower optimizer.lr or raise optimizer.warmup_fraction, and look at these rows"
    if saved is not None:
        hint += f"; a new run can start from the checkpoint: --load {folder.path} --output NEW"
    elif progress.step == 0:
        hint = f"the weights of {config.load} may not be finite themselves; look at these rows too"
    kept = f"the last checkpoint is {saved}" if saved else "no checkpoint was written yet"
    return RunError(
        f"step {progress.step + 1}: {error}; no weight was changed by it, and {kept}\n"
        f"  rows of the batch: {', '.join(rows[:_ROWS_SHOWN])}{more}",
        hint,
    )


def _peak_memory() -> int:
    """Measure this rank's largest memory so far, in bytes: the GPU's, else the process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
