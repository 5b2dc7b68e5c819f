"""Copies of the host's numbers to the device, which the host does not wait for."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(
    host: NDArray[Any] | Tensor, device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """Copy numbers of the host to a device; a copy to a GPU is queued, from pinned memory.

    On the CPU nothing is copied, but to change the type.

    Args:
        host: The numbers, of any shape; they may be changed once this has returned.
        device: Where the copy is to lie.
        dtype: What the numbers become first; None: they stay what they are.
    """
    tensor = host if isinstance(host, Tensor) else torch.from_numpy(host)
    tensor = tensor if dtype is None else tensor.to(dtype)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
