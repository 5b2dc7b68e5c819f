"""A training step at several layouts, really run on the CPU: what its tensors take.

Run by torchrun; prints JSON with a row for each rank. Bytes held are those of the storages, bytes
at the peak those that torch's allocator tells the profiler about.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from alignctl.config.load import STAGES, resolve
from alignctl.config.run import TrainingConfig
from alignctl.engines import megatron
from alignctl.models import document_attention
from alignctl.simulation.batches import training_batch
from alignctl.simulation.measures import held, make_state
from alignctl.stages import training
from alignctl.stages.simulation import head_and_loss


def config_of(stage: str, preset: str, overrides: list[str]) -> TrainingConfig:
    """A run of a preset, with overrides."""
    return resolve(STAGES[stage], preset, {"output": Path("runs")}, overrides)


def measure(config: TrainingConfig) -> dict[str, int]:
    """This rank's bytes."""
    head, loss = head_and_loss(config)
    engine: Any = training.build_engine(config, head)
    for parameter in engine.model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    engine.create_optimizer()
    make_state(engine)
    batches = [training_batch(config)] * config.num_micro_batches
    engine.train_step(batches, loss, learning_rate=1e-5)
    document_attention.forget_biases()  # a simulated step makes them
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        engine.train_step(batches, loss, learning_rate=1e-5)
    kept = held(engine)
    return {**vars(kept), "activations": _peak(profiler)}


def _peak(profiler: Any) -> int:
    """The most bytes that were allocated beyond those at the start."""
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


def main(cases: list[list[Any]]) -> None:
    """Measures cases of (stage, preset, overrides) that all have this job's number of ranks."""
    torch.set_num_threads(1)
    rows = []
    for number, case in enumerate(cases):
        config = config_of(*case)
        if number == 0:
            megatron.initialize(config.parallel, seed=1, timeout_minutes=2)
        else:
            megatron.lay_out(config.parallel, seed=1, timeout_minutes=2)
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, measure(config))
        rows.append(gathered)
    if dist.get_rank() == 0:
        Path(os.environ["RESULTS"]).write_text(json.dumps(rows), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
