"""The border between the host, whose numbers are real, and the device, which has none."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from typing_extensions import override

_FACTORIES = (torch.tensor, torch.zeros, torch.ones, torch.empty, torch.full, torch.arange)


class HostNumbers(TorchFunctionMode):
    """Makes tensors that name no device real, and gives the host ones from the device.

    Attributes:
        is_building: Whether models are being built: these make their weights on the host and take
            them to the device afterwards, so all tensors are the device's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_building = False

    @contextmanager
    def building(self) -> Iterator[None]:
        """Mark the time in which models are built."""
        self.is_building = True
        yield
        self.is_building = False

    @override
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FACTORIES and kwargs.get("device") is None and not self.is_building:
            if func is torch.tensor:
                args = (tree_map_only(FakeTensor, lambda each: each.tolist(), args[0]), *args[1:])
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func is torch.equal and isinstance(args[0], FakeTensor):
            return False  # what is kept only where two differ is kept
        if func in (Tensor.cpu, Tensor.numpy) and isinstance(args[0], FakeTensor):
            with unset_fake_temporarily():
                ones = torch.ones(args[0].shape, dtype=args[0].dtype)
                return ones.numpy() if func is Tensor.numpy else ones
        return func(*args, **kwargs)
