"""Tells host and GPU tensors apart on a machine without a GPU, and counts what makes a host wait.

"cuda" means the CPU here, but every storage is marked with the place that the code asked for.
Operators hand marks on, in the backward pass too, which runs in the calling thread on a CPU. An
operator that mixes places is noted with the lines that made its tensors; torch would refuse it on a
GPU, unless one of them is a number. An index on the host is allowed by torch, and waits.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alignctl.engines import device
from alignctl.engines.megatron import cpu

aten = torch.ops.aten

_SAMPLER = ("/vllm/",)
"""What waits for a GPU of its own accord: `rollouts/vllm.py` ends where vLLM begins."""

_NEUTRAL = (*_SAMPLER, "/transformers/", "/safetensors/")
"""Libraries whose own tensors are left without a mark: vLLM's CPU engine would be one on a GPU."""

_THIS = ("sanitizer/places.py", "engines/megatron/cpu.py")
"""What sees every operator, and so stands in every stack."""

_OURS = ("/alignctl/", "/stages/", "/megatron/", "/deepspeed/", "/tests/")
_GET_DEVICE = Tensor.device.__get__
_WAITING = {
    aten._local_scalar_dense.default: "number to the host",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten._unique2.default: "unique",
    aten.unique_dim.default: "unique",
    aten.equal.default: "comparison",
    aten.bincount.default: "bincount",
    aten.repeat_interleave.Tensor: "repeats",
}
_INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
_COPIES = {aten.copy_.default, aten._to_copy.default}


@dataclass(frozen=True)
class Mark:
    """Where a storage lies: `gpu` or `host`, and the line that made it."""

    place: str
    line: str


@dataclass
class Places:
    """The marks of all storages, and what was found.

    Attributes:
        mixes: Operators whose tensors lie in two places, with the lines concerned.
        waits: How often the host waited: in which window and phase, what for and in which line.
        windows: Steps of the run that were begun.
        window: The one that is under way; 0: none is.
        updates: Optimizer steps in each.
        phase: Part of it that waits are counted under.
        inside: Where the tensors of the torch function lie that is being called.
    """

    marks: dict[int, tuple[StorageWeakRef, Mark]] = field(default_factory=dict)
    mixes: Counter[str] = field(default_factory=Counter)
    waits: Counter[tuple[int, str, str]] = field(default_factory=Counter)
    windows: int = 0
    window: int = 0
    updates: Counter[int] = field(default_factory=Counter)
    phase: str = "else"
    inside: str = "host"

    def of(self, tensor: Tensor) -> Mark | None:
        """The mark of a tensor; None for what a neutral library made."""
        found = self.marks.get(_reference(tensor).cdata)
        return None if found is None or found[0].expired() else found[1]

    def mark(self, tensor: Tensor, place: str, line: str) -> Tensor:
        """Marks a tensor, and returns it."""
        reference = _reference(tensor)
        self.marks[reference.cdata] = (reference, Mark(place, line))
        return tensor

    def wait(self, what: str) -> None:
        """Notes that the host waits for the GPU in the calling line, unless that is vLLM's."""
        if _innermost_is(_SAMPLER):
            return
        self.waits[self.window, self.phase, f"{what} at {find_line()}"] += 1

    def synchronize(self, *_: Any) -> None:
        """Takes the place of what waits for a whole GPU, or for a stream of it."""
        self.wait("synchronize")

    def is_gpu(self, tensor: object) -> bool:
        """Whether a value is a tensor on the GPU."""
        found = self.of(tensor) if isinstance(tensor, Tensor) else None
        return found is not None and found.place == "gpu"


def _reference(tensor: Tensor) -> StorageWeakRef:
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # inside of vmap
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return StorageWeakRef(tensor.untyped_storage())


def _frames() -> Iterator[Any]:
    frame: Any = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back


def find_line() -> str:
    """The innermost line that is ours or Megatron's."""
    for frame in _frames():
        name = frame.f_code.co_filename
        if any(part in name for part in _OURS) and not name.endswith(_THIS):
            return f"{'/'.join(name.split('/')[-3:])}:{frame.f_lineno}"
    return "?"


def is_backward() -> bool:
    """Whether a backward pass is under way, in which torch functions are not seen."""
    return torch._C._current_graph_task_id() != -1


def _innermost_is(libraries: tuple[str, ...]) -> bool:
    """Whether the innermost code that is not torch's belongs to one of these libraries."""
    for frame in _frames():
        name = frame.f_code.co_filename
        if "/torch/" in name or name.endswith(_THIS):
            continue
        return any(part in name for part in libraries)
    return False


class Operators(TorchDispatchMode):
    """Sees every operator: notes mixes and waits, hands marks on."""

    def __init__(self, places: Places) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._places = places

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        places = self._places
        inputs = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        known = [(mark, each) for each in inputs if (mark := places.of(each)) is not None]
        on_gpu = any(mark.place == "gpu" for mark, _ in known)
        sides = {mark.place for mark, each in known if each.dim() > 0}
        if func in _WAITING and on_gpu:
            if kwargs.get("output_size") is None:  # which says how many repeats there are
                places.wait(_WAITING[func])
        elif func in _INDEXING and on_gpu:
            self._index(args)
        elif func in _COPIES:
            queued = kwargs.get("non_blocking") or (
                func is aten.copy_.default and args[2:] == (True,)
            )
            if len(sides) > 1 and not queued:
                places.wait(f"copy {' and '.join(sorted(sides))}")
        elif len(sides) > 1:
            lines = "; ".join(sorted({f"{mark.place} from {mark.line}" for mark, _ in known}))
            places.mixes[f"{func} at {find_line()}: {lines}"] += 1
        result = func(*args, **kwargs)
        self._mark_results(result, known, on_gpu)
        return result

    def _index(self, args: Any) -> None:
        indices = [each for each in args[1] if isinstance(each, Tensor)]
        if len(args) > 2 and args[2].numel() == 1 and len(indices) == 1:
            return  # one value for a mask: torch fills it in, and finds no places
        if any(each.dtype in (torch.bool, torch.uint8) for each in indices):
            self._places.wait("boolean index")
        elif self._places.is_gpu(args[0]) and any(
            (mark := self._places.of(each)) is not None and mark.place == "host" for each in indices
        ):
            self._places.wait("index on the host")

    def _mark_results(self, result: Any, known: list[Any], on_gpu: bool) -> None:
        fresh = [
            each
            for each in tree_leaves(result)
            if isinstance(each, Tensor) and self._places.of(each) is None
        ]
        if not fresh or (not known and _innermost_is(_NEUTRAL)):
            return
        line = find_line()
        for each in fresh:
            is_gpu = on_gpu or is_backward() or self._places.inside == "gpu"
            self._places.mark(each, "gpu" if is_gpu else "host", line)


def make_mode(places: Places) -> type[cpu._CudaMeansCpu]:
    """Makes what stands in for Megatron's "cuda": the CPU, with marks."""

    class Marking(cpu._CudaMeansCpu):
        def __torch_function__(
            self,
            func: Callable[..., Any],
            types: Any,
            args: tuple[Any, ...] = (),
            kwargs: dict[str, Any] | None = None,
        ) -> Any:
            kwargs = dict(kwargs or {})
            if func in (Tensor.to, Tensor.cuda, Tensor.cpu):
                target = _target(places, func, args, kwargs)
                if target is not None:
                    return _move(places, func, args, kwargs, target)
            if func in (Tensor.tolist, Tensor.numpy) and places.is_gpu(args[0]):
                if func is Tensor.numpy:
                    places.mixes[f"numpy of a GPU tensor at {find_line()}"] += 1
                places.wait("list to the host")
            if func == _GET_DEVICE and places.is_gpu(args[0]):
                return torch.device("cuda")
            makes_on_gpu = cpu._names_cuda(kwargs.get("device"))
            if func is Tensor.pin_memory:
                return args[0]  # as a GPU would have it: the same numbers, on the host
            kwargs.pop("pin_memory", None)
            if (makes_on_gpu and func in (torch.tensor, torch.as_tensor)) or (
                func is Tensor.new_tensor and places.is_gpu(args[0])
            ):
                places.wait("copy gpu and host")
            # What a function makes for itself lies where its arguments do.
            before, places.inside = places.inside, "host"
            if any(map(places.is_gpu, tree_leaves((args, kwargs)))):
                places.inside = "gpu"
            try:
                result = super().__torch_function__(func, types, args, kwargs)
            finally:
                places.inside = before
            if makes_on_gpu and isinstance(result, Tensor):
                places.mark(result, "gpu", find_line())
            return result

    return Marking


def watch() -> Places:
    """Makes "cuda" mean the CPU with marks, for this process; `Operators` is to be entered.

    Code that asks whether there is a GPU hears that there is one: what it does then is done here,
    with gloo in NCCL's place, and with memory that is not pinned.
    """
    device.DEVICE = torch.device("cuda")  # before anything else imports them
    device.IS_GPU = True
    places = Places()
    cpu.load()
    anything: Any = cpu
    anything._CudaMeansCpu = make_mode(places)
    anything._NoStream.synchronize = places.synchronize
    cpu.install()
    cuda: Any = torch.cuda
    cuda.current_device = lambda: cpu.CPU if is_backward() else device.DEVICE
    cuda.synchronize = places.synchronize
    cuda.set_device = lambda _: None
    join: Any = dist.init_process_group
    anything = dist
    anything.init_process_group = lambda backend, **more: join(
        "gloo" if backend == "nccl" else backend, **more
    )
    return places


def _target(places: Places, func: Any, args: Any, kwargs: Any) -> str | None:
    """Where a tensor is moved to; None where it only changes its type."""
    if func is not Tensor.to:
        return "gpu" if func is Tensor.cuda else "host"
    for each in (*args[1:], *kwargs.values()):
        if isinstance(each, Tensor):
            return "gpu" if places.is_gpu(each) else "host"
        if isinstance(each, torch.device) or (isinstance(each, str) and each):
            return "gpu" if cpu._names_cuda(each) else "host"
    return None


def _move(places: Places, func: Any, args: Any, kwargs: Any, target: str) -> Tensor:
    """A tensor in another place, as a copy of its own, and in another type if that is asked."""
    tensor = args[0]
    mark = places.of(tensor)
    types = [each for each in (*args[1:], *kwargs.values()) if isinstance(each, torch.dtype)]
    others = [each for each in args[1:] if isinstance(each, Tensor)]
    dtype = types[0] if types else others[0].dtype if others else tensor.dtype
    if mark is not None and mark.place == target:
        return tensor.to(dtype)  # type: ignore[no-any-return]
    if not kwargs.get("non_blocking"):  # queued otherwise, and the host goes on
        places.wait("copy to the host" if target == "host" else "copy to the GPU")
    with torch.utils._python_dispatch._disable_current_modes():
        moved = tensor.detach().clone()
    places.mark(moved, target, find_line())
    if tensor.requires_grad and torch.is_grad_enabled():
        apply: Any = _Moved.apply
        moved = apply(tensor, moved)
    return moved.to(dtype)  # type: ignore[no-any-return]


class _Moved(torch.autograd.Function):
    """A copy in another place, whose gradient goes back there."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, moved: Tensor) -> Tensor:
        return moved.view_as(moved)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
