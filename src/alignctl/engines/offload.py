"""Memory that a model gives back while another one has its turn on the device."""

from collections.abc import Iterable

import torch
from torch import Tensor, UntypedStorage

from alignctl.engines.device import IS_GPU


class Offloaded:
    """The contents of tensors, moved to the memory of the CPU until `restore`.

    Whole storages are moved and resized to nothing, so every view of them (parameters in Megatron's
    flat buffers, master weights that are slices of parameters) stays the view that it was. On a
    machine without a GPU the same is done; it saves nothing there, but can be tested.
    """

    def __init__(self, kept: Iterable[Tensor], dropped: Iterable[Tensor] = ()) -> None:
        """Move tensors to the memory of the CPU.

        Args:
            kept: Tensors whose values come back; several may share a storage.
            dropped: Tensors that come back as zeros, such as the gradients between two steps.
        """
        self._kept = [(each, _copy_to_host(each)) for each in _storages(kept)]
        if IS_GPU:
            torch.cuda.synchronize()
        known = {each._cdata for each, _ in self._kept}
        self._dropped = [
            (each, each.nbytes()) for each in _storages(dropped) if each._cdata not in known
        ]
        for storage, _ in [*self._kept, *self._dropped]:
            storage.resize_(0)

    @property
    def num_bytes(self) -> int:
        """Bytes of device memory that were given back."""
        return sum(host.nbytes for _, host in self._kept) + sum(size for _, size in self._dropped)

    def restore(self) -> None:
        """Bring everything back to where it was."""
        for storage, host in self._kept:
            storage.resize_(host.nbytes)
            _copy_from_host(storage, host)
        for storage, size in self._dropped:
            storage.resize_(size)
            _bytes_of(storage).zero_()
        if IS_GPU:
            torch.cuda.synchronize()
        self._kept, self._dropped = [], []


def _storages(tensors: Iterable[Tensor]) -> list[UntypedStorage]:
    """List the storages of tensors, each once, without those that hold nothing."""
    found = {each.untyped_storage()._cdata: each.untyped_storage() for each in tensors}
    return [storage for storage in found.values() if storage.nbytes()]


def _bytes_of(storage: UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _copy_to_host(tensor_storage: UntypedStorage) -> Tensor:
    host = torch.empty(tensor_storage.nbytes(), dtype=torch.uint8, pin_memory=IS_GPU)
    return host.copy_(_bytes_of(tensor_storage), non_blocking=True)


def _copy_from_host(storage: UntypedStorage, host: Tensor) -> None:
    _bytes_of(storage).copy_(host, non_blocking=True)
