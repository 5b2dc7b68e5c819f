"""A job of one process: a process group without torchrun, for work that needs no second rank."""

import contextlib
import os
import sys
from collections.abc import Iterator

import torch
import torch.distributed as dist

from alignctl.engines.device import IS_GPU


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """The process group that engines and vLLM expect, with this process as its only rank.

    No port is opened. Where there is a group already, it is the one that is used, and stays.
    """
    if dist.is_initialized():
        yield
        return
    # vLLM reads these, and nothing else does: the group's store is in this process.
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    if IS_GPU:
        torch.cuda.set_device(0)
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("nccl" if IS_GPU else "gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        if vllm := sys.modules.get("vllm.distributed.parallel_state"):
            vllm.destroy_distributed_environment()  # it remembers the group it has met
        if dist.is_initialized():
            dist.destroy_process_group()
