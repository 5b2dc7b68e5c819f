"""A process group without torchrun: of one process, or of a few that one has started."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from alignctl.engines.device import IS_GPU, stay_on_loopback


@contextlib.contextmanager
def process_group(store: Any = None, rank: int = 0, num_ranks: int = 1) -> Iterator[None]:
    """Provide the process group that engines and vLLM expect.

    Where there is a group already, it is the one that is used, and stays.

    Args:
        store: One of torch's, where the ranks meet; None: this process is the only one.
        rank: Of this process.
        num_ranks: Processes, all of them on this machine.
    """
    if dist.is_initialized():
        yield
        return
    stay_on_loopback()
    # vLLM reads these, and nothing else does.
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num_ranks))
    if IS_GPU:
        torch.cuda.set_device(rank)
    store = store or dist.HashStore()  # type: ignore[attr-defined]
    backend = "nccl" if IS_GPU else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=num_ranks)
    try:
        yield
    finally:
        if vllm := sys.modules.get("vllm.distributed.parallel_state"):
            vllm.destroy_distributed_environment()  # it remembers the group it has met
        if dist.is_initialized():
            dist.destroy_process_group()
