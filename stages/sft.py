"""Supervised fine-tuning: next-token cross-entropy on what the assistant says.

    alignctl sft --preset llama2-7b --load models/mg --data data/sft

The launcher half (`launch`) checks every input and prepares the data before a process is started;
the worker half (`run`) is what torchrun starts on every rank:

    python -m torch.distributed.run --nproc-per-node 8 ... -m alignctl.stages.sft runs/NAME

Departures from the tutorials' systems: the loss is divided by the tokens learned in the whole
optimizer step (not per micro batch), rows are not padded, all assistant turns are learned.
"""

import math
import os
import resource
import shutil
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignctl import atomic, console
from alignctl.config.run import SFTConfig
from alignctl.data import order, preview
from alignctl.data.sft import prepare
from alignctl.data.store import SFTData
from alignctl.data.tokenizer import load_tokenizer
from alignctl.errors import AlignctlError, RunError, UserError
from alignctl.launch import local, worker
from alignctl.launch.attempt import Attempt, create_or_resume
from alignctl.launch.job import Job, worker_environment
from alignctl.launch.nodes import Nodes
from alignctl.launch.run_folder import RunFolder
from alignctl.reporting.metrics import MetricsWriter, recorded
from alignctl.reporting.progress import display
from alignctl.reporting.rows_progress import RowsProgress

if TYPE_CHECKING:
    from alignctl.checkpoints.source import Source
    from alignctl.engines.megatron import MegatronEngine
    from alignctl.engines.metrics import StepMetrics

PREPARED = "prepared"
"""File in the run folder's data/ that names the prepared folder the ranks are to read."""

_ROWS_SHOWN = 8


def job(config: SFTConfig, nodes: Nodes) -> Job:
    """The torchrun job of a run, as this node starts it."""
    return Job(
        module="alignctl.stages.sft",
        args=(str(config.output),),
        nproc=config.launch.nproc_per_node,
        nnodes=nodes.nnodes,
        node_rank=nodes.node_rank,
        master_addr=nodes.master_addr,
        master_port=nodes.master_port,
        env=worker_environment(config.launch.nproc_per_node, os.environ),
    )


def launch(config: SFTConfig, *, nodes: Nodes, dry_run: bool, resume: bool) -> int:
    """Checks the inputs, opens the run folder, prepares the data and runs the job.

    Args:
        config: The resolved configuration.
        nodes: This node's place among the others.
        dry_run: Only print each node's command and the configuration.
        resume: Whether a run folder that was started before may be continued.

    Returns:
        The exit code, 0.

    Raises:
        UserError: An input is wrong; nothing was started, and no new folder is left behind.
        RunError: The job failed.
    """
    todo = job(config, nodes)
    if dry_run:
        for rank in range(nodes.nnodes):
            console.emit(todo.on_node(rank).render())
        console.emit(config.model_dump_json(indent=2))
        return 0
    import torch

    from alignctl.checkpoints.preflight import check_devices, check_model, check_resumable

    check_devices(config, torch.cuda.device_count())
    source = check_model(config)
    check_resumable(config, RunFolder(config.output))
    with create_or_resume(
        config.output, config, argv=sys.argv, resume=resume, node_rank=nodes.node_rank
    ) as attempt:
        if attempt.state != "finished":
            console.say(f"model: {source.description}")
            if nodes.node_rank == 0:
                _prepare_data(config, source, attempt)
        local.run(todo, attempt, display())
    return 0


def _prepare_data(config: SFTConfig, source: "Source", attempt: Attempt) -> None:
    """Tokenises the rows; a new run folder is taken back when they turn out to be wrong."""
    tokenizer = load_tokenizer(source.tokenizer_folder(config.tokenizer))
    data, pointer = attempt.folder.data, attempt.folder.data / PREPARED
    try:
        data.mkdir(exist_ok=True)
        progress = RowsProgress("tokenising")
        prepared = prepare(config.data, config.batch.seq_length, tokenizer, data, progress)
        before = pointer.read_text(encoding="utf-8") if pointer.exists() else prepared.name
        if before != prepared.name and attempt.folder.latest_step():
            raise UserError(
                f"{config.data.train}: the rows or the tokenizer have changed since this run was "
                "started: its steps would not be those of the rows it began with",
                f"put them back, or start a new run: --load {attempt.folder.path} --output NEW",
            )
        atomic.write_text(pointer, prepared.name)
    except AlignctlError:
        if attempt.state == "new":
            shutil.rmtree(attempt.folder.path)
        raise
    console.say(SFTData.open(prepared).summary.describe())


# ---- what every rank runs ----


@dataclass
class _Progress:
    """Where the run is: what result.json tells at the end."""

    step: int
    total: int
    first_validation: float | None = None
    loss: float | None = None
    validation: dict[str, float] | None = None

    @classmethod
    def recall(cls, folder: RunFolder, step: int, total: int) -> "_Progress":
        """Where the run was at a step, as its metrics tell: earlier attempts belong to it."""
        progress = cls(step=step, total=total)
        for row in recorded(folder, until=step):
            if row["kind"] == "train":
                progress.loss = row["loss"]
            elif row["kind"] == "validation":
                about = ("kind", "step", "time")
                progress.validation = {key: row[key] for key in row if key not in about}
                if row["step"] == 0:
                    progress.first_validation = row["loss"]
        return progress


def run(folder: RunFolder) -> None:
    """One rank's work: load or resume, train, validate, save."""
    import torch.distributed as dist

    from alignctl.engines.megatron import initialize

    config = SFTConfig.model_validate_json(folder.config.read_text(encoding="utf-8"))
    initialize(
        config.parallel, seed=config.train.seed, timeout_minutes=config.launch.timeout_minutes
    )
    data = SFTData.open(folder.data / (folder.data / PREPARED).read_text(encoding="utf-8"))
    engine, source, step = _load(config, folder)
    progress = _Progress.recall(folder, step, _total_steps(config, data))
    with MetricsWriter(folder, enabled=dist.get_rank() == 0, step=step) as metrics:
        metrics.start(step, progress.total)
        if step == 0:
            _show_a_sample(config, source, data, metrics)
        _train(config, folder, engine, source, data, progress, metrics)
    if progress.step == progress.total and dist.get_rank() == 0:
        folder.write_result(
            {
                "stage": config.stage,
                "steps": progress.step,
                "checkpoint": f"checkpoints/iter_{progress.step:07d}",
                "loss": progress.loss,
                "first_validation_loss": progress.first_validation,
                "validation": progress.validation,
            }
        )
    dist.barrier()
    dist.destroy_process_group()


def _load(config: SFTConfig, folder: RunFolder) -> "tuple[MegatronEngine, Source, int]":
    """The engine with its weights, where they came from, and the steps it has taken."""
    from alignctl.checkpoints.preflight import open_model
    from alignctl.checkpoints.source import find
    from alignctl.engines import megatron_state
    from alignctl.engines.megatron import MegatronEngine

    engine = MegatronEngine(
        config.model,
        config.parallel,
        precision=config.precision,
        seq_length=config.batch.seq_length,
        optimizer=config.optimizer,
    )
    if (checkpoint := folder.latest_checkpoint()) is not None:
        engine.create_optimizer()
        return engine, find(checkpoint), megatron_state.resume(engine, checkpoint)
    source = open_model(config)
    megatron_state.load_weights(engine, source)
    engine.create_optimizer()
    return engine, source, 0


def _total_steps(config: SFTConfig, data: SFTData) -> int:
    if config.train.steps is not None:
        return config.train.steps
    assert config.train.epochs is not None
    sequences = config.train.epochs * data.train.num_sequences
    return max(1, math.ceil(sequences / config.batch.global_batch_size))


def _show_a_sample(
    config: SFTConfig, source: "Source", data: SFTData, metrics: MetricsWriter
) -> None:
    tokenizer = load_tokenizer(source.tokenizer_folder(config.tokenizer))
    document = data.train.document(int(data.train.members[0]))
    metrics.preview(preview.pieces(document, tokenizer))


def _train(
    config: SFTConfig,
    folder: RunFolder,
    engine: "MegatronEngine",
    source: "Source",
    data: SFTData,
    progress: _Progress,
    metrics: MetricsWriter,
) -> None:
    """The steps of the run, with validations and checkpoints between them."""
    from alignctl.engines.megatron_state import save

    if progress.step == 0:
        _validate(config, engine, data, progress, metrics)
    while progress.step < progress.total:
        result = _step(config, folder, engine, data, progress, metrics)
        is_last = progress.step == progress.total
        if is_last or progress.step % config.train.eval_interval == 0:
            _validate(config, engine, data, progress, metrics)
        is_stopping = result.is_stop_requested and not is_last
        if is_last or is_stopping or progress.step % config.checkpoint.save_interval == 0:
            path = save(
                engine,
                folder.checkpoints,
                progress.step,
                source=source,
                tokenizer=config.tokenizer,
                keep=config.checkpoint.keep,
            )
            metrics.checkpoint(progress.step, path)
        if is_stopping:
            metrics.note(f"stopped after step {progress.step} of {progress.total}, as asked")
            return


def _step(
    config: SFTConfig,
    folder: RunFolder,
    engine: "MegatronEngine",
    data: SFTData,
    progress: _Progress,
    metrics: MetricsWriter,
) -> "StepMetrics":
    """One optimizer step: take its batch, train, log."""
    from alignctl.algorithms.schedule import learning_rate
    from alignctl.algorithms.sft import CrossEntropy
    from alignctl.engines.protocol import NonFiniteError

    started = time.perf_counter()
    batches = order.train_batches(
        data.train,
        step=progress.step,
        seed=config.train.seed,
        global_batch_size=config.batch.global_batch_size,
        micro_batch_size=config.batch.micro_batch_size,
        dp_rank=engine.data_parallel_rank,
        dp_size=engine.data_parallel_size,
    )
    lr = learning_rate(progress.step, config.optimizer, total_steps=progress.total)
    try:
        result = engine.train_step(
            batches,
            CrossEntropy(),
            learning_rate=lr,
            is_stop_requested=worker.stop_requested(folder),
        )
    except NonFiniteError as error:
        raise _with_culprits(error, config, folder, data, progress) from error
    progress.step += 1
    progress.loss = result.loss
    if progress.step % config.train.log_interval == 0 or progress.step == progress.total:
        assert result.grad_norm is not None
        metrics.train(
            progress.step,
            loss=result.loss,
            **result.metrics,
            lr=lr,
            grad_norm=result.grad_norm,
            tokens_per_second=result.num_tokens / (time.perf_counter() - started),
            tokens=result.num_tokens,
            peak_memory_gib=_peak_memory() / 2**30,
        )
    return result


def _validate(
    config: SFTConfig,
    engine: "MegatronEngine",
    data: SFTData,
    progress: _Progress,
    metrics: MetricsWriter,
) -> None:
    """Token-weighted loss and accuracy on the held-out rows, the same ones every time."""
    from alignctl.algorithms.sft import CrossEntropy

    if data.validation is None:
        return
    limit = config.train.eval_batches
    batches = order.validation_batches(
        data.validation,
        micro_batch_size=config.batch.micro_batch_size,
        dp_rank=engine.data_parallel_rank,
        dp_size=engine.data_parallel_size,
        max_sequences=limit and limit * config.batch.global_batch_size,
    )
    result = engine.evaluate(batches, CrossEntropy())
    progress.validation = {"loss": result.loss, **result.metrics}
    if progress.step == 0:
        progress.first_validation = result.loss
    metrics.validation(progress.step, **progress.validation)


def _with_culprits(
    error: Exception, config: SFTConfig, folder: RunFolder, data: SFTData, progress: _Progress
) -> RunError:
    """The same failure with the step, the rows of its batch and what is safe."""
    sequences = order.step_sequences(
        data.train.num_sequences,
        global_batch_size=config.batch.global_batch_size,
        seed=config.train.seed,
        step=progress.step,
    )
    rows = [data.where(row) for row in data.train.batch(sequences.tolist()).rows]
    more = f" and {len(rows) - _ROWS_SHOWN} more" if len(rows) > _ROWS_SHOWN else ""
    saved = folder.latest_checkpoint()
    hint = "lower optimizer.lr or raise optimizer.warmup_steps, and look at these rows"
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
    """Largest memory of this rank so far, in bytes: the GPU's, or without one the process's."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    worker.run(run, sys.argv[1])
