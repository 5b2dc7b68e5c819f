"""New weights into vLLM's model, layer by layer, and proof that all of them have arrived.

vLLM starts with random weights here, which must never be sampled from. So what is sent is compared
with the weight map, what vLLM says it has loaded with its own parameters, and, when asked, what it
will compute with, bit by bit, with what was sent.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from alignctl.errors import RunError

_PROBE_ROWS = 1024

Sums = dict[str, tuple[int, int]]
"""By parameter of vLLM: the sum of its elements' bits as integers modulo 2^64, and their number.
The order of the elements does not matter, nor do rows of zeros."""


def load(
    worker: Any, stream: Iterable[tuple[str, Tensor]], shapes: dict[str, tuple[int, ...]]
) -> Sums:
    """Load a stream into the model of a vLLM worker, in the place of its weights.

    vLLM keeps tensors until a layer's are complete, then copies them into the memory that the layer
    has already: there is never a second model.

    Args:
        worker: vLLM's, in this process.
        stream: Hugging Face names and whole tensors, in the type of vLLM's weights.
        shapes: Of every tensor that must come.

    Returns:
        The sums of what was sent, by vLLM's parameters.

    Raises:
        RunError: A tensor is missing, too many or of another shape, or a parameter got nothing.
    """
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload import (
        finalize_layerwise_reload,
        initialize_layerwise_reload,
    )

    runner = worker.worker.model_runner
    model = runner.get_model()
    expected = {name for name, _ in model.named_parameters()}
    sums: Sums = {}
    with set_current_vllm_config(runner.vllm_config), torch.no_grad():
        initialize_layerwise_reload(model)
        try:
            loaded = model.load_weights(_watch(stream, shapes, sums, _list_merged_names(model)))
        finally:  # whatever came of it, the next push must find the model in one piece
            finalize_layerwise_reload(model, runner.model_config)
        _repack_tied(model)
    if missing := sorted(expected - loaded):
        raise RunError(f"vLLM got no weights for {', '.join(missing)}")
    return sums


def check(worker: Any, sent: Sums) -> None:
    """Compare the weights that a vLLM worker will compute with to those that were sent.

    Collective over the ranks of a replica.

    Raises:
        RunError: Some differ.
    """
    from vllm.distributed.parallel_state import get_tp_group

    found = [
        (name, part.numel(), _bits(part))
        for module, short, name in _weights(worker)
        for part in _found(module, short)
    ]
    sums = torch.stack([bits for _, _, bits in found]).cpu()
    own = [(name, count) for name, count, _ in found]
    total = sums.clone()
    dist.all_reduce(total, group=get_tp_group().cpu_group)
    # A tensor that is not cut is on every rank whole; of one that is, the ranks' sums add up.
    wrong = sorted(
        {
            name
            for (name, count), mine, everybodys in zip(
                own, sums.tolist(), total.tolist(), strict=True
            )
            if sent[name][0] != (mine if count == sent[name][1] else everybodys)
        }
    )
    if wrong:
        raise RunError(
            f"after the push of weights, {len(wrong)} of {len(sent)} tensors in vLLM are not what "
            f"was sent: {', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}"
        )


def _watch(
    stream: Iterable[tuple[str, Tensor]],
    shapes: dict[str, tuple[int, ...]],
    sums: Sums,
    merged_names: dict[str, str],
) -> Iterator[tuple[str, Tensor]]:
    """Pass the stream on, compare it with what must come, and sum it on the way."""
    left = dict(shapes)
    counts: dict[str, int] = {}
    found: dict[str, Tensor] = {}
    for name, tensor in stream:
        if left.pop(name, None) != tuple(tensor.shape):
            wanted = shapes.get(name, "none of that name, or it came before")
            raise RunError(f"{name} of shape {tuple(tensor.shape)} was pushed; expected {wanted}")
        target = name
        for part, whole in merged_names.items():
            target = target.replace(f".{part}.", f".{whole}.")
        counts[target] = counts.get(target, 0) + tensor.numel()
        bits = _bits(tensor)
        found[target] = found[target] + bits if target in found else bits
        yield name, tensor
    if left:
        raise RunError(f"the push of weights lacks {', '.join(sorted(left))}")
    # Read at the end: the host would wait for the GPU at each of the tensors.
    totals = torch.stack(list(found.values())).tolist()
    sums |= {name: (total, counts[name]) for name, total in zip(found, totals, strict=True)}


def _list_merged_names(model: Any) -> dict[str, str]:
    """Map Hugging Face's name of a layer to vLLM's of the one that it is a part of."""
    merged: dict[str, list[str]] = getattr(model, "packed_modules_mapping", {})
    return {part: whole for whole, parts in merged.items() for part in parts}


def _repack_tied(model: Any) -> None:
    """Give a tied output layer on the CPU the new weights.

    It multiplies with a packed copy of the embedding, its own, and vLLM 0.32 renews that of the
    embedding only: the output layer would go on with what it was packed from first.
    """
    seen = set()
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if id(weight) in seen and hasattr(module, "cpu_linear"):
            module.quant_method.process_weights_after_loading(module)
        seen.add(id(weight))


def _weights(worker: Any) -> Iterator[tuple[Any, str, str]]:
    """Yield modules with their own parameters: the name in the module, and its first full name."""
    names: dict[int, str] = {}
    for prefix, module in worker.worker.model_runner.get_model().named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            yield module, name, names.setdefault(id(parameter), f"{prefix}.{name}")


def _found(module: Any, short: str) -> Iterator[Tensor]:
    """Yield a parameter, and the copy of it that a layer on the CPU multiplies with.

    Such a copy is packed for the processor, and the parameter may be gone. It is read by having it
    multiply the identity, which is exact: every sum has one term that is not zero.
    """
    parameter = getattr(module, short).detach()
    dtype = module.weight.dtype
    if parameter.numel():
        yield parameter.to(dtype)
    multiply = getattr(module, "cpu_linear", None)
    if short == "weight" and multiply is not None:
        width = _inputs(module)
        identity = torch.eye(width, dtype=dtype)
        yield torch.cat(
            [
                multiply(rows.contiguous(), module.weight, None)
                for rows in identity.split(_PROBE_ROWS)
            ]
        )


def _inputs(module: Any) -> int:
    """Count the columns of the weight on this rank, of a linear layer or a vocabulary table."""
    if module.weight.numel():
        return int(module.weight.shape[1])
    return int(module.input_size_per_partition)


def _bits(tensor: Tensor) -> Tensor:
    """Sum the elements' bits as integers, modulo 2^64 `[]`; -0 counts as 0."""
    integers = {4: torch.int32, 2: torch.int16}[tensor.element_size()]
    return (tensor + 0.0).contiguous().view(integers).sum(dtype=torch.int64)
