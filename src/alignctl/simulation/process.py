"""This process as any rank of a job of any size, alone."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.fusions import fused_bias_gelu, fused_bias_swiglu
from torch import Tensor, UntypedStorage
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Module, Parameter
from torch.testing._internal.distributed.fake_pg import FakeStore

from alignctl.config.run import TrainingConfig
from alignctl.engines import offload
from alignctl.engines.megatron import cpu as megatron_cpu
from alignctl.engines.megatron import groups as megatron_groups
from alignctl.models import document_attention, flex_attention
from alignctl.simulation.host import HostNumbers
from alignctl.simulation.memory_tracker import MemoryTracker


@dataclass(frozen=True)
class Rank:
    """A rank that is played.

    Attributes:
        number: Among all ranks of the job.
        tracker: What it takes and sends.
        host: Says when models are being built.
    """

    number: int
    tracker: MemoryTracker
    host: HostNumbers


@contextmanager
def playing(config: TrainingConfig, number: int, *, is_gpu: bool = True) -> Iterator[Rank]:
    """Make this process one rank of the job while the block lasts.

    Its other ranks are not there: collectives are counted and return at once. Nothing that was
    made meanwhile may be used afterwards.

    Args:
        config: The run.
        number: The rank.
        is_gpu: Whether operators keep for the backward pass what they would on a GPU.
    """
    layouts = [model.parallel for model in config.models.values()]
    widths = {each.tp: config.architecture.padded_vocab_size(each.tp) for each in layouts}
    tracker = MemoryTracker(frozenset(width // tp for tp, width in widths.items()))
    host = HostNumbers()
    megatron_cpu.install()
    dist.init_process_group("fake", rank=number, world_size=config.world_size, store=FakeStore())
    try:
        with ExitStack() as stack:
            for owner, name, value in _replacements(tracker, is_gpu=is_gpu):
                stack.enter_context(_replaced(owner, name, value))
            timeout_minutes = config.launch.timeout_minutes
            megatron_groups.lay_out(layouts, seed=1, timeout_minutes=timeout_minutes)
            tracker.groups = _groups()
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            stack.enter_context(tracker)
            stack.enter_context(host)
            yield Rank(number, tracker, host)
    finally:
        document_attention.forget_biases()
        megatron_groups.leave()
        dist.destroy_process_group()


def _groups() -> dict[str, str]:
    """Name the purpose of each process group, by the group's name."""
    found: dict[str, str] = {}
    for groups in megatron_groups.laid_out():
        # Megatron keeps a second one of the data-parallel ranks, for context parallelism.
        of_kind = {"DP": (groups.dp, groups.dp_cp), "PP": (groups.pp,), "TP": (groups.tp,)}
        found |= {one.group_name: kind for kind, each in of_kind.items() for one in each}
    return found


def _replacements(tracker: MemoryTracker, *, is_gpu: bool) -> list[tuple[Any, str, Any]]:
    """List what is no operator, and has to be replaced where tensors have no numbers."""
    resize, create_group = UntypedStorage.resize_, parallel_state.create_group

    def resize_and_note(storage: UntypedStorage, size: int) -> UntypedStorage:
        resize(storage, size)
        tracker.resized(storage)
        return storage

    def create_fake_group(*args: Any, backend: str | None = None, **kwargs: Any) -> Any:
        # Megatron also makes gloo groups, which would wait for the other ranks.
        return create_group(*args, **kwargs)

    def all_gather_object(found: list[Any], mine: Any, group: Any = None) -> None:
        found[:] = [mine] * len(found)

    def to_host(storage: UntypedStorage) -> SimpleNamespace:
        return SimpleNamespace(nbytes=storage.nbytes())

    def from_host(storage: UntypedStorage, host: SimpleNamespace) -> None:
        pass

    def rms_norm(x: Tensor, shape: Any, weight: Tensor, eps: float | None = None) -> Tensor:
        return _RMSNormKernel.apply(x, weight)  # type: ignore[no-any-return, no-untyped-call]

    def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return torch.native_dropout(x, p, training)[0] if p and training else x

    def attend(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        return _FlexKernel.apply(query, key, value)  # type: ignore[no-any-return, no-untyped-call]

    no_mask: Any = None  # the kernel above reads none

    # On a GPU dropout keeps a byte of each element, and RMSNorm is one kernel; on the CPU they keep
    # a number, and are a handful of operators in float32. Plain attention keeps the same on both;
    # FlexAttention is one kernel on a GPU alone, and so are Megatron's fused functions.
    kernels = [
        (torch.nn.functional, "rms_norm", rms_norm),
        (torch.nn.functional, "dropout", dropout),
        (flex_attention, "flex_attention", attend),
        (fused_bias_swiglu, "swiglu", lambda y: y.new_empty(*y.shape[:-1], y.shape[-1] // 2)),
        (fused_bias_swiglu, "swiglu_back", lambda grad, y: torch.empty_like(y)),
        (fused_bias_gelu, "bias_gelu", lambda bias, y: torch.empty_like(y)),
        (fused_bias_gelu, "bias_gelu_back", lambda grad, bias, y: torch.empty_like(y)),
        (flex_attention.FlexMask, "of", lambda *_: flex_attention.FlexMask(no_mask, no_mask)),
    ]
    kernels = kernels if is_gpu else []
    return [
        *kernels,
        (UntypedStorage, "resize_", resize_and_note),
        (parallel_state, "create_group", create_fake_group),
        (dist, "all_gather_object", all_gather_object),
        (offload, "_copy_to_host", to_host),
        (offload, "_copy_from_host", from_host),
        (Module, "_apply", _convert),
    ]


def _convert(self: Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Module:
    """Convert a module as `Module._apply` does; new parameters take the places of fake ones.

    torch would swap their contents, which it refuses for tensors with weak references.
    """
    for child in self.children() if recurse else ():
        _convert(child, function)
    with torch.no_grad():
        for name, parameter in self._parameters.items():
            if parameter is not None and (new := function(parameter)) is not parameter:
                self._parameters[name] = Parameter(new, parameter.requires_grad)
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = function(buffer)
    return self


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


class _RMSNormKernel(torch.autograd.Function):
    """What RMSNorm's kernel on a GPU keeps: its input, and a number for each row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty((*x.shape[:-1], 1), dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


class _FlexKernel(torch.autograd.Function):
    """What FlexAttention's kernel on a GPU keeps: inputs, output, and a number for each row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, tokens, width = query.shape
        output = query.new_empty(batch, tokens, heads, width).transpose(1, 2)
        rows = query.new_empty((batch, heads, tokens), dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, rows)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(each) for each in ctx.saved_tensors[:3])
