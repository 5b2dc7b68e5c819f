"""What a rank's tensors take, and what it sends: counted while its program runs."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, UntypedStorage
from torch._C._distributed_c10d import FakeWork
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

_SENT: dict[str, Callable[[int], float]] = {
    "allreduce_": lambda size: 2 * (size - 1) / size,
    "allreduce_coalesced_": lambda size: 2 * (size - 1) / size,
    "_reduce_scatter_base_": lambda size: (size - 1) / size,
    "reduce_scatter_tensor_coalesced_": lambda size: (size - 1) / size,
    "_allgather_base_": lambda size: size - 1,
    "allgather_into_tensor_coalesced_": lambda size: size - 1,
    "allgather_": lambda size: size - 1,
    "broadcast_": lambda size: (size - 1) / size,
    "send": lambda size: 1,
}
"""Bytes that a rank sends per byte that it puts in, by ring algorithms, in a group of a size."""

_INPUT_IS_SECOND = ("_reduce_scatter_base_", "_allgather_base_", "allgather_")
"""Collectives whose first argument is their result."""


@dataclass(eq=False)
class Peak:
    """The most that was alive at one time in a part of the program.

    Attributes:
        start: Bytes that were alive when it began.
        total: The most bytes.
        held: Those of them that were said to be held.
        logits: The most bytes of tensors that have a column for each token of the vocabulary.
    """

    start: int
    total: int
    held: int = 0
    logits: int = 0


@dataclass(eq=False)
class MemoryTracker(TorchDispatchMode):
    """Sees every operator of a program whose device tensors are fake, and keeps the books.

    Tensors of the device are fake: they have shapes and no numbers. Tensors of the host are real:
    tokens, boundaries, what decides on shapes. Operators on the latter alone really run. Where
    numbers of the device reach the host, and where other ranks would answer, they are 1.

    It also works beside a program whose tensors are all real, and then changes nothing.

    Attributes:
        vocabularies: Columns of this rank's logits, in each layout; tensors with so many count as
            such.
        groups: What a process group is for, by its name: "TP", "PP", "DP".
        boundaries: Shapes of what this pipeline stage receives next, one after the other.
        live: Bytes of device tensors that are alive, and of what is held.
        sent: Bytes sent so far in the groups of each kind.
    """

    vocabularies: frozenset[int]
    groups: dict[str, str] = field(default_factory=dict)
    boundaries: Iterator[tuple[int, ...]] = field(default_factory=lambda: iter(()))
    live: int = 0
    sent: Counter[str] = field(default_factory=Counter)
    _sizes: dict[int, int] = field(default_factory=dict)
    _logits: set[int] = field(default_factory=set)
    _live_logits: int = 0
    _held: int = 0
    _known: dict[int, tuple[int, ...]] = field(default_factory=dict)
    _peaks: list[Peak] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Call the other base's `__init__`, which a dataclass does not do by itself."""
        super().__init__()  # type: ignore[no-untyped-call]

    @contextmanager
    def peak(self) -> Iterator[Peak]:
        """Measure a part of the program; parts may lie inside each other."""
        found = Peak(self.live, self.live)
        self._peaks.append(found)
        self._compare()
        yield found
        self._peaks.remove(found)

    def hold(self, num_bytes: int) -> None:
        """Count memory of the device that is no tensor's, such as vLLM's, from now on."""
        self.live += num_bytes - self._held
        self._held = num_bytes
        self._compare()

    def resized(self, storage: UntypedStorage) -> None:
        """Note the new size of a storage that was emptied, or filled again, in its place."""
        key = storage._cdata
        if key in self._sizes:
            self.live += storage.nbytes() - self._sizes[key]
            self._sizes[key] = storage.nbytes()
            self._compare()

    def _compare(self) -> None:
        for peak in self._peaks:
            peak.logits = max(peak.logits, self._live_logits)
            if self.live > peak.total:
                peak.total, peak.held = self.live, self._held

    @override
    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # asked of every tensor again and again
        kwargs = kwargs or {}
        tensors = list(_tensors((args, kwargs)))
        is_fake = any(isinstance(each, FakeTensor) for each in tensors)
        if func.namespace == "c10d":
            self._collective(func, args, tensors, is_fake=is_fake)
            if is_fake and "coalesced" in func._schema.name:
                return FakeWork().boxed()  # fake tensors do not know these operators
        if tensors and not is_fake:
            return self._on_host(func, args, kwargs, tensors)
        if func is torch.ops.aten._local_scalar_dense.default:
            return self._number(args[0])
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], [_as_places(each) for each in args[1]], *args[2:])
        out = func(*args, **kwargs)
        for tensor in _tensors(out):
            if isinstance(tensor, FakeTensor):
                self._note(tensor)
        return out

    def _on_host(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]
    ) -> Any:
        """Run an operator on real tensors."""
        with unset_fake_temporarily():
            out = func(*args, **kwargs)
            if func.namespace == "c10d":
                for tensor in tensors:
                    tensor.fill_(1)
        return out

    def _note(self, tensor: Tensor) -> None:
        """Count a storage that was not there before."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        size = storage.nbytes()
        self._sizes[key] = size
        weakref.finalize(storage, self._freed, key)
        self.live += size
        if tensor.dim() > 1 and tensor.shape[-1] in self.vocabularies:
            self._logits.add(key)
            self._live_logits += size
        self._compare()

    def _freed(self, key: int) -> None:
        size = self._sizes.pop(key)
        self.live -= size
        self._known.pop(key, None)
        if key in self._logits:
            self._logits.remove(key)
            self._live_logits -= size

    def _number(self, tensor: Tensor) -> float | int | bool:
        """Return the number that the host reads of a tensor of the device."""
        known = self._known.get(tensor.untyped_storage()._cdata)
        if known is not None:
            return known[int(tensor.storage_offset())]
        return _one(tensor.dtype)

    def _collective(
        self, func: Any, args: tuple[Any, ...], tensors: list[Tensor], *, is_fake: bool
    ) -> None:
        name = func._schema.name.removeprefix("c10d::")
        if name == "recv_" and is_fake:
            (received,) = args[0]
            if received.dtype == torch.int64:  # a shape, that of the tensor that follows
                self._known[received.untyped_storage()._cdata] = next(self.boundaries)
        if name not in _SENT:
            return
        group = next(
            dist.ProcessGroup.unbox(each)
            for each in args
            if isinstance(each, torch.ScriptObject) and "ProcessGroup" in str(each._type())
        )
        inputs = _tensors(args[1] if name in _INPUT_IS_SECOND else args[0])
        size = sum(each.numel() * each.element_size() for each in inputs)
        self.sent[self.groups.get(group.group_name, "other")] += int(
            size * _SENT[name](group.size())
        )


def _one(dtype: torch.dtype) -> float | int | bool:
    if dtype == torch.bool:
        return True
    return 1.0 if dtype.is_floating_point else 1


def _as_places(index: Tensor | None) -> Tensor | None:
    """Find the places where a mask of the host is True: only so their number is known."""
    if index is None or isinstance(index, FakeTensor) or index.dtype != torch.bool:
        return index
    with unset_fake_temporarily():
        return index.nonzero().squeeze(1)


def _tensors(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors in tuples, lists and dictionaries; torch's tree_leaves takes far longer."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for each in tree:
            yield from _tensors(each)
    elif isinstance(tree, dict):
        yield from _tensors(tuple(tree.values()))
