"""A stage's own work on one rank of each kind, without GPUs and without the other ranks.

    alignctl sft --preset llama2-70b --simulate

Engines, schedules, losses and updates are those of the stage; tensors are fake, collectives are
counted. Data are batches of full length, of which every position is learned. Of vLLM only the
memory is known.
"""

import os
import time
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

from alignctl import console
from alignctl.config.kernels import Kernels
from alignctl.config.on_policy_run import is_on_policy
from alignctl.config.run import TrainingConfig
from alignctl.corpus.pool import map_in_order
from alignctl.errors import UserError
from alignctl.planning.budget import counted
from alignctl.planning.devices import device
from alignctl.planning.job import check_cuts, describe, kinds_of_ranks
from alignctl.planning.layouts import fitting
from alignctl.planning.memory import GIB
from alignctl.planning.report import RankReport, Report, largest
from alignctl.planning.sampler import sampler
from alignctl.reporting.progress.alive import alive
from alignctl.stages.shared.stage import Stage, load_stage

if TYPE_CHECKING:
    from alignctl.simulation.process import Rank


def launch(config: TrainingConfig, *, gpu_memory_gib: float) -> int:
    """Simulate a stage and print what it found; return 2 where it does not fit."""
    started = time.perf_counter()
    with alive("simulating"):
        report = simulate(config, gpu_memory_gib=gpu_memory_gib, progress=True)
    console.emit(report.render())
    console.say(f"simulated in {time.perf_counter() - started:.0f} s")
    if report.fits:
        return 0
    console.say(f"hint: {_advice(config, gpu_memory_gib)}")
    return 2


def _advice(config: TrainingConfig, gpu_memory_gib: float) -> str:
    """Suggest what would fit: another layout of the same GPUs, or of more."""
    for factor in (1, 2, 4, 8):
        gpus = factor * config.world_size
        plans = fitting(config, device("a100-80g"), gpus=gpus, gpu_memory_gib=gpu_memory_gib)
        if plans:
            with_more = f" on {gpus} GPUs" if factor > 1 else ""
            return f"by arithmetic this fits{with_more}: {' '.join(plans[0].overrides)}"
    return f"not even {gpus} GPUs have room for it: train adapters, with lora.rank=16"


def simulate(
    config: TrainingConfig,
    *,
    gpu_memory_gib: float = 80.0,
    is_gpu: bool = True,
    progress: bool = False,
) -> Report:
    """Run one step of one rank of each kind, of as many kinds at a time as there are cores.

    Args:
        config: The run; nothing is loaded, so neither paths nor data are needed.
        gpu_memory_gib: What a GPU has.
        is_gpu: Whether operators keep for the backward pass what they would on a GPU.
        progress: Whether to say which rank is under way.

    Raises:
        UserError: The engine cannot be simulated, or a model cannot be cut as its role says.
    """
    if config.engine != "megatron":
        raise UserError(
            f"engine {config.engine}: only engine megatron can be simulated", "leave out --simulate"
        )
    check_cuts(config)
    config = _with_kernels(config, is_gpu=is_gpu)
    kinds = kinds_of_ranks(config)
    if progress:
        console.say(f"simulating: {', '.join(kinds)}")
    play = partial(_played, config, gpu_memory_gib=gpu_memory_gib, is_gpu=is_gpu)
    workers = min(len(kinds), len(os.sched_getaffinity(0)))
    ranks = tuple(map_in_order(play, kinds.items(), workers, _load_megatron, None))
    return Report(
        describe(config),
        ranks,
        gpu_memory_gib,
        sampler(config, gpu_memory_gib) if is_on_policy(config) else None,
        config.launch.nproc_per_node,
    )


def _with_kernels(config: TrainingConfig, *, is_gpu: bool) -> TrainingConfig:
    """Copy the run with kernels that are there: Transformer Engine's keep what FlexAttention's do.

    What is on a GPU by default does not follow from this machine.
    """
    chosen = config.kernels.attention
    if chosen in ("auto", "transformer_engine"):
        chosen = Kernels().choose(config.architecture, is_gpu=is_gpu, has_transformer_engine=False)
    update = {
        "attention": chosen,
        "activation": config.kernels.choose_activation(is_gpu=is_gpu),
    }
    return config.model_copy(update={"kernels": config.kernels.model_copy(update=update)})


def _load_megatron(_: None) -> None:
    # Megatron says at length what it lacks without CUDA, and so without reading it.
    warnings.filterwarnings("ignore", module=r"megatron\.")
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated")
    from alignctl.engines.megatron import cpu as megatron_cpu

    megatron_cpu.load()


def _played(
    config: TrainingConfig, rank_kind: tuple[str, int], *, gpu_memory_gib: float, is_gpu: bool
) -> RankReport:
    """Simulate a rank and measure what the ranks of its kind take."""
    from alignctl.simulation.process import playing

    kind, number = rank_kind
    here = load_stage(config.stage)
    if here.learner is None or not is_on_policy(config):
        with playing(config, number, is_gpu=is_gpu) as rank:
            return _training_step(here, config, rank, kind)
    from alignctl.simulation.episode import simulate_episode

    found, gpu_memory = [], int(gpu_memory_gib * GIB)
    for each in counted(config):
        with playing(each, number, is_gpu=is_gpu) as rank:
            found.append(simulate_episode(each, here.learner, rank, kind, gpu_memory))
    return largest(found)


# ---- sft, reward, dpo ----


def _training_step(
    stage: Stage[Any], config: TrainingConfig, rank: "Rank", kind: str
) -> RankReport:
    """Take a step of a stage that learns from rows."""
    from alignctl.simulation.batches import training_batch
    from alignctl.simulation.measures import (
        PhaseRecorder,
        held,
        make_state,
        micro_batches,
        watch_schedule,
    )
    from alignctl.stages.shared import training

    assert stage.loss is not None
    loss = stage.loss(config)
    with rank.host.building():
        engine: Any = training.build_engine(config, config.models["model"].head)
    engine.create_optimizer()
    make_state(engine)
    watch_schedule(engine, config, rank.tracker)
    batch, recorder = training_batch(config), PhaseRecorder(rank.tracker)
    count = micro_batches(config, config.parallel, rank.number)
    if config.needs_reference:
        with recorder.phase("reference"):
            engine.document_outputs([batch] * count, 1)
    with recorder.phase("step"):
        engine.train_step([batch] * count, loss, learning_rate=config.optimizer.lr)
    return RankReport(kind, {"model": held(engine)}, recorder.phases)
