"""Where an engine's tensors live: on this rank's GPU, or without one in the process's memory."""

import os
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from alignctl.algorithms import copies
from alignctl.launch.address import ON_LOOPBACK

IS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if IS_GPU else "cpu")


def stay_on_loopback() -> None:
    """Make process groups listen on loopback alone, where all ranks are on this machine.

    To be called before there is one; what the user has set already stays.
    """
    for name, value in ON_LOOPBACK.items():
        os.environ.setdefault(name, value)


def to_device(array: NDArray[np.generic]) -> Tensor:
    """Copy an array to the device; the host does not wait until the GPU has come so far.

    Without a GPU nothing is copied: the tensor shares the memory of the array.
    """
    return copies.to_device(array, DEVICE)


def join(timeout_minutes: float) -> None:
    """Take this rank's GPU and join the job's process group, if it has not done so.

    Args:
        timeout_minutes: How long a rank waits for the others in one collective.
    """
    if IS_GPU:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():  # stages have met the others: see rendezvous.join
        dist.init_process_group(
            "nccl" if IS_GPU else "gloo", timeout=timedelta(minutes=timeout_minutes)
        )
