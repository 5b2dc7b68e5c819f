"""What Megatron-Core needs in order to run on a machine without CUDA; never installed elsewhere.

Megatron-Core (0.16.1; 0.18, 0.19) names the "cuda" device in its schedules, its random-state
tracker and its optimizer. Here those names mean the CPU. Nothing is emulated: streams and
synchronisation are empty because CPU operators finish before they return.
"""

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.cuda.random as cuda_random
from torch.overrides import TorchFunctionMode

from alignctl import allocator

CPU = torch.device("cpu")


def _names_cuda(device: object) -> bool:
    return (isinstance(device, str) and device.startswith("cuda")) or (
        isinstance(device, torch.device) and device.type == "cuda"
    )


class _CudaMeansCpu(TorchFunctionMode):
    """Sends every torch call that names the cuda device to the CPU."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if kwargs and _names_cuda(kwargs.get("device")):
            kwargs = {**kwargs, "device": CPU}
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.to and len(args) > 1 and _names_cuda(args[1]):
            args = (args[0], CPU, *args[2:])
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # The optimizer compares tensor.type() with 'torch.cuda.FloatTensor'.
            return func(*args).replace("torch.", "torch.cuda.", 1)
        return func(*args, **kwargs)


class _NoStream:
    """A stream of a device that has none."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def wait_stream(self, *_: Any) -> None: ...
    def wait_event(self, *_: Any) -> None: ...
    def synchronize(self) -> None: ...


_installed: _CudaMeansCpu | None = None


def load() -> None:
    """Import Megatron-Core; call it before the first module that does so.

    Without a GPU nothing of it is compiled, but its fused functions are decorated with
    `torch.compile`, which imports the compiler: 1.5 to 2 seconds of processor time, and 70 MB, of
    every process.
    """
    if torch.cuda.is_available():
        return
    compile_ = torch.compile
    anything: Any = torch
    anything.compile = lambda model=None, **_: model or (lambda function: function)
    try:
        import megatron.core.models.gpt
        import megatron.core.optimizer  # noqa: F401
    finally:
        anything.compile = compile_


def install() -> None:
    """Make Megatron-Core's "cuda" mean the CPU in this process, once and for good."""
    global _installed
    if _installed is not None:
        return
    allocator.keep_freed()

    cuda: Any = torch.cuda
    cuda.current_device = lambda: CPU
    cuda.synchronize = lambda *_, **__: None
    cuda.current_stream = cuda.default_stream = lambda *_, **__: _NoStream()
    cuda.Stream = _NoStream
    cuda.stream = lambda _: contextlib.nullcontext()
    cuda.empty_cache = lambda: None
    cuda.manual_seed = torch.manual_seed
    modules: tuple[Any, ...] = (cuda, cuda_random)
    for module in modules:
        module.get_rng_state = lambda *_, **__: torch.get_rng_state()
        module.set_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    # Not at the top: Megatron-Core is to be imported by `load` first.
    import megatron.core.tensor_parallel.random as megatron_random

    random: Any = megatron_random
    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    # It warns where numbers for the GPU were drawn and the CPU's state has changed: they are one.
    logging.getLogger(megatron_random.__name__).setLevel(logging.ERROR)
    mode: Any = _CudaMeansCpu()
    mode.__enter__()
    _installed = mode
