"""Low-rank adapters on Megatron's parallel linear layers (Hu et al. 2021; see `models.adapters`).

The inner side of an adapter is small, so that is where tensor parallelism communicates: rank
numbers per token where the layer itself exchanges whole hidden states. What every rank holds whole
(A of a column-parallel layer, B of a row-parallel one) has the same, whole gradient on all of them;
under sequence parallelism each rank sees its share of the tokens only, and Megatron adds the shares
up once, as it does for norms.

So are the elements of an input that dropout takes away: the same on all ranks where they have the
same input, others where each has a part of its own.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from megatron.core import tensor_parallel
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import Module, Parameter, functional
from torch.nn.functional import linear, pad

from alignctl.config.sections import Lora, Model
from alignctl.models.adapters import Adapter, group_by_weight
from alignctl.models.families import weight_map
from alignctl.models.megatron import LanguageModel
from alignctl.models.weight_map import HEAD_MODULES, ROW, Weight, full_shape


class LowRank(Module):
    """The A and B of one Hugging Face linear layer, this rank's part of them, not set."""

    def __init__(
        self, adapter: Adapter, rank: int, config: TransformerConfig, like: Tensor
    ) -> None:
        super().__init__()
        tp = config.tensor_model_parallel_size
        outputs, inputs = adapter.shape
        is_row = adapter.a.layout is ROW
        where: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
        self.a = Parameter(torch.empty(rank, inputs // tp if is_row else inputs, **where))
        self.b = Parameter(torch.empty(outputs if is_row else outputs // tp, rank, **where))
        whole: Any = self.b if is_row else self.a
        whole.sequence_parallel = config.sequence_parallel


class Adapters(Module):
    """The adapters of one parallel linear layer; a submodule per Hugging Face layer in it."""

    def __init__(
        self,
        own: Sequence[Adapter],
        row: Weight,
        model: Model,
        lora: Lora,
        config: TransformerConfig,
        ranks: ProcessGroup,
        like: Tensor,
    ) -> None:
        """Make the adapters of one layer, not set.

        Args:
            own: The layer's adapters.
            row: The layer's row of the weight map.
            model: The architecture.
            lora: Their settings.
            config: Megatron's view of it.
            ranks: The tensor-parallel ranks.
            like: The layer's weight, for its type and device.
        """
        super().__init__()
        self.scale, self.dropout = lora.alpha / lora.rank, lora.dropout
        self._ranks = ranks
        self.is_on = True
        self.is_row = row.layout is ROW
        self.is_cut_by_tokens = config.sequence_parallel
        is_cut_by_columns = self.is_row and config.tensor_model_parallel_size > 1
        self.is_input_cut = self.is_cut_by_tokens or is_cut_by_columns
        self.names = [each.module for each in own]
        for each in own:
            self.add_module(each.module, LowRank(each, lora.rank, config, like))
        order = _row_order(own, row, model, config.tensor_model_parallel_size)
        self.order: Tensor | None
        self.register_buffer("order", order, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute what is added to the layer's output, from its input, both as this rank has them.

        Column-parallel: `[T or T / tp, 1, inputs]` -> `[T, 1, outputs / tp]`; row-parallel:
        `[T, 1, inputs / tp]` -> `[T or T / tp, 1, outputs]`.
        """
        pairs = [cast(LowRank, self.get_submodule(name)) for name in self.names]
        inner, ranks = self._inner(x, [pair.a for pair in pairs]), self._ranks
        if self.is_row and self.is_cut_by_tokens:
            inner = tensor_parallel.reduce_scatter_to_sequence_parallel_region(
                inner, group=self._ranks
            )
        elif self.is_row:
            inner = tensor_parallel.reduce_from_tensor_model_parallel_region(
                inner, group=self._ranks
            )
        elif self.is_cut_by_tokens:
            inner = tensor_parallel.gather_from_sequence_parallel_region(inner, group=ranks)
        else:
            inner = tensor_parallel.copy_to_tensor_model_parallel_region(inner, group=ranks)
        # Each row of the layer reads the inner numbers of its own adapter; the others' are zeros.
        outer = torch.block_diag(*[pair.b for pair in pairs])
        if self.order is not None:
            outer = pad(outer, (0, 0, 0, 1))[self.order]
        return self.scale * linear(inner, outer)

    def _inner(self, x: Tensor, a: Sequence[Tensor]) -> Tensor:
        """Compute A x of all adapters, `[..., adapters x rank]`; each drops elements of its own."""
        if not (self.training and self.dropout):
            return linear(x, torch.cat(tuple(a)))
        with self._random_numbers():
            return torch.cat(
                [linear(functional.dropout(x, self.dropout), each) for each in a], dim=-1
            )

    def _random_numbers(self) -> AbstractContextManager[Any]:
        """Choose random numbers: those that ranks share if their inputs are the same; else own.

        Megatron keeps both in its checkpoints, and draws them again where layers are recomputed.
        """
        if self.is_input_cut:
            own: AbstractContextManager[Any] = tensor_parallel.get_cuda_rng_tracker().fork()
            return own
        return nullcontext()


def _row_order(own: Sequence[Adapter], row: Weight, model: Model, tp: int) -> Tensor | None:
    """Find, for each of the layer's rows on a rank `[outputs / tp]`, its row among those of all B.

    A row without an adapter gets the one behind the last, which is zero. None where the order is
    the same. A rank's rows are those of a smaller model, with fewer heads of the same width.
    """
    if row.layout is ROW:
        return None
    cut = ("hidden_size", "num_attention_heads", "num_query_groups")
    smaller = model.model_copy(update={name: getattr(model, name) // tp for name in cut})
    rows = torch.arange(full_shape(row, model)[0] // tp)
    sizes = [len(part) for part in row.layout.split(rows, smaller)]
    parts = [torch.full((size,), sum(each.shape[0] // tp for each in own)) for size in sizes]
    start = 0
    for each in own:
        parts[each.part] = torch.arange(start, start := start + sizes[each.part])
    order = row.layout.merge(parts, smaller)
    return None if torch.equal(order, rows) else order


def add_lora(built: LanguageModel, model: Model, lora: Lora) -> None:
    """Put adapters on this rank's layers and freeze the rest, but for a score head.

    Their parameters are named as in `models.adapters.adapter_map`, and not set.
    """
    config, tp = built.config, built.pg_collection.tp
    for name, parameter in built.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(f"{top}." for top in HEAD_MODULES.values())))
    rows = weight_map(model)
    own = group_by_weight(model, lora)
    for layer in built.decoder.layers:
        for name, module in list(layer.named_modules()):
            weight = f"decoder.layers.{layer.layer_number - 1}.{name}.weight"
            if weight in own:
                made = Adapters(own[weight], rows[weight], model, lora, config, tp, module.weight)
                module.add_module("lora", made)
                module.register_forward_hook(_add)
    if built.pre_process and config.recompute_granularity == "full":
        # A layer that is computed again has a gradient only if its input asks for one.
        built.embedding.register_forward_hook(lambda _, __, output: output.requires_grad_())


@contextmanager
def without_adapters(built: LanguageModel) -> Iterator[None]:
    """Make a model compute, within the context, what it did before it had adapters."""
    own = [module for module in built.modules() if isinstance(module, Adapters)]
    for each in own:
        each.is_on = False
    try:
        yield
    finally:
        for each in own:
            each.is_on = True


def _add(module: Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, Any]) -> Any:
    """Add to a linear layer's output what its adapters make of its input; its bias stays."""
    adapters = cast(Adapters, module.lora)
    if not adapters.is_on:
        return output
    return output[0] + adapters(inputs[0]), output[1]
