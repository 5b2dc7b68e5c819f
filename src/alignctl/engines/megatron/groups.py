"""Megatron's process groups: laid over a job's ranks by the layout, global to the process."""

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from alignctl.config.sections import Parallel
from alignctl.engines.device import IS_GPU, join
from alignctl.engines.megatron import cpu as megatron_cpu


def initialize(parallel: Parallel, *, seed: int, timeout_minutes: float) -> None:
    """Join the job's process group and lay out Megatron's groups over it, once per process.

    Args:
        parallel: The layout.
        seed: Of everything random on this job's ranks.
        timeout_minutes: How long a rank waits for the others in one collective.
    """
    if not IS_GPU:
        megatron_cpu.install()
    join(timeout_minutes)
    lay_out(parallel, seed=seed, timeout_minutes=timeout_minutes)


def lay_out(parallel: Parallel, *, seed: int, timeout_minutes: float) -> None:
    """Lay Megatron's groups over the job's ranks, in place of those of an earlier layout."""
    if parallel_state.is_initialized():
        parallel_state.destroy_model_parallel()
    # Megatron's groups have a timeout of their own, half an hour unless it is told.
    parallel_state.initialize_model_parallel(
        parallel.tp, parallel.pp, distributed_timeout_minutes=timeout_minutes
    )
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)


def groups() -> dict[str, dist.ProcessGroup]:
    """List this rank's groups of more than one rank, by name, in an order that all ranks share."""
    found = {
        "tensor-parallel": parallel_state.get_tensor_model_parallel_group(),
        "pipeline-parallel": parallel_state.get_pipeline_model_parallel_group(),
        "data-parallel": parallel_state.get_data_parallel_group(),
    }
    return {name: group for name, group in found.items() if dist.get_world_size(group) > 1}


def leave() -> None:
    """End Megatron's groups, so that they can be laid over another process group."""
    parallel_state.destroy_model_parallel()
