"""Megatron's process groups: a collection of them for each layout that a job's models have.

Every model is given its own collection and asks nothing else, so models of several layouts lie on
the same ranks. Megatron's global state is that of the first layout; what is left there of it, in
Megatron-Core 0.16 to 0.19, is where a tied output layer of a later pipeline stage is saved.
"""

from collections.abc import Collection, Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection

from alignctl.config.sections import Parallel
from alignctl.engines.device import IS_GPU, join
from alignctl.engines.megatron import cpu as megatron_cpu

_laid_out: dict[tuple[int, int], ProcessGroupCollection] = {}
"""The groups of each layout, by its tensor-parallel ranks and pipeline stages; first that of
Megatron's global state."""


def initialize(layouts: Sequence[Parallel], *, seed: int, timeout_minutes: float) -> None:
    """Join the job's process group and lay out Megatron's groups over it, once per process.

    Args:
        layouts: Of the job's models; first that of the one that has dropout.
        seed: Of everything random on this job's ranks.
        timeout_minutes: How long a rank waits for the others in one collective.
    """
    if not IS_GPU:
        megatron_cpu.install()
    join(timeout_minutes)
    lay_out(layouts, seed=seed, timeout_minutes=timeout_minutes)


def lay_out(layouts: Sequence[Parallel], *, seed: int, timeout_minutes: float) -> None:
    """Lay Megatron's groups over the job's ranks, in place of those of earlier layouts."""
    leave()
    sizes = list(dict.fromkeys((each.tp, each.pp) for each in layouts))
    found = {}
    for tp, pp in reversed(sizes):  # the last one stays
        parallel_state.destroy_model_parallel()
        # Megatron's groups have a timeout of their own, half an hour unless it is told.
        parallel_state.initialize_model_parallel(
            tp,
            pp,
            distributed_timeout_minutes=timeout_minutes,
            create_gloo_process_groups=False,
        )
        found[tp, pp] = ProcessGroupCollection.use_mpu_process_groups()
    _laid_out.update((each, found[each]) for each in sizes)
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)


def groups_of(parallel: Parallel) -> ProcessGroupCollection:
    """Return the groups of a layout, which must have been laid out."""
    return _laid_out[parallel.tp, parallel.pp]


def laid_out() -> Collection[ProcessGroupCollection]:
    """List the groups of all layouts."""
    return _laid_out.values()


def groups() -> dict[str, dist.ProcessGroup]:
    """List this rank's groups of more than one rank, by name, in an order that all ranks share."""
    found: dict[str, dist.ProcessGroup] = {}
    for number, ((tp, pp), each) in enumerate(_laid_out.items()):
        layout = f" (TP {tp} x PP {pp})" if number else ""
        found |= {
            f"tensor-parallel{layout}": each.tp,
            f"pipeline-parallel{layout}": each.pp,
            f"data-parallel{layout}": each.dp,
        }
    return {name: group for name, group in found.items() if dist.get_world_size(group) > 1}


def leave() -> None:
    """End Megatron's groups, so that they can be laid over another process group."""
    _laid_out.clear()
    parallel_state.destroy_model_parallel()
