"""A training step at several layouts, really run on the CPU: what its tensors take.

Run by torchrun; prints JSON with a row for each rank. Bytes held are those of the storages, bytes
at the peak those that torch's allocator tells the profiler about.
"""

import json
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from typing_extensions import override

from alignctl.config.presets.load import STAGES, resolve
from alignctl.config.run import TrainingConfig
from alignctl.engines.megatron import groups as megatron_groups
from alignctl.models import document_attention
from alignctl.simulation import batches as simulated
from alignctl.simulation.measures import held, make_state
from alignctl.stages.shared import training
from alignctl.stages.shared.stage import load_stage
from tests.simulation import shared

SHARED = "batch.share_prompts=true"
"""Of cases whose micro batches have something to share, written out."""


def config_of(stage: str, preset: str, overrides: list[str]) -> TrainingConfig:
    """A run of a preset, with overrides."""
    return resolve(STAGES[stage], preset, {"output": Path("runs")}, overrides)


class Apart(TorchDispatchMode):
    """Keeps out of the allocator's books what only a CPU and gloo need.

    A thread of gloo often is the last that lets go of a tensor, and the profiler does not see what
    another thread gives back: to it, such a tensor is there for good. So collectives are given
    copies. And where a number of another type is added, torch first makes a copy in the right type,
    on the CPU alone.
    """

    @override
    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.add_.Tensor and args[0].dtype != args[1].dtype:
            args = (args[0], _copy(args[1], args[0].dtype), *args[2:])
        if func.namespace != "c10d" or func._schema.name in ("c10d::send", "c10d::recv_"):
            return func(*args, **kwargs)
        if func._schema.name == "c10d::_reduce_scatter_base_":
            return self._reduce_scatter(*args)
        copies: dict[int, tuple[Tensor, Tensor]] = {}

        def apart(tensor: Tensor) -> Tensor:
            copy = _copy(tensor, tensor.dtype)
            copies[id(copy)] = (copy, tensor)
            return copy

        out = func(*tree_map_only(Tensor, apart, args), **kwargs)
        dist.Work.unbox(out[-1] if isinstance(out, tuple) else out).wait()
        for copy, tensor in copies.values():
            tensor.copy_(copy)
        return tree_map_only(Tensor, lambda each: copies[id(each)][1], out)

    def _reduce_scatter(self, result: Tensor, tensor: Tensor, group: Any, *_: Any) -> Any:
        """Gloo makes a copy for this, which its thread gives back."""
        process_group, copy = dist.ProcessGroup.unbox(group), _copy(tensor, tensor.dtype)
        work = process_group.allreduce([copy])
        work.wait()
        result.copy_(copy.chunk(process_group.size())[process_group.rank()])
        return result, work.boxed()


def _copy(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in memory that the allocator knows nothing of."""
    memory = bytearray(max(tensor.numel(), 1) * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype)[: tensor.numel()].view(tensor.shape).copy_(tensor)


def prepare(config: TrainingConfig) -> tuple[Any, Callable[[], object]]:
    """An engine with its optimizer's state, and a step of it."""
    stage = load_stage(config.stage)
    assert stage.loss is not None
    loss = stage.loss(config)
    engine: Any = training.build_engine(config, config.models["model"].head)
    for parameter in engine.model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    engine.create_optimizer()
    make_state(engine)
    batches = [simulated.training_batch(config)] * config.num_micro_batches
    return engine, lambda: engine.train_step(batches, loss, learning_rate=1e-5)


def measure(config: TrainingConfig) -> dict[str, int]:
    """This rank's bytes."""
    engine, step = prepare(config)
    step()
    document_attention.forget_biases()  # a simulated step makes them
    memory = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with Apart(), memory as profiler:  # type: ignore[no-untyped-call]
        step()
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
            megatron_groups.initialize([config.parallel], seed=1, timeout_minutes=2)
        else:
            megatron_groups.lay_out([config.parallel], seed=1, timeout_minutes=2)
        gathered: list[Any] = [None] * dist.get_world_size()
        with shared.in_its_place() if SHARED in case[2] else nullcontext():
            dist.all_gather_object(gathered, measure(config))
        rows.append(gathered)
    if dist.get_rank() == 0:
        Path(os.environ["RESULTS"]).write_text(json.dumps(rows), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
