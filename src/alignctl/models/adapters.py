"""Low-rank adapters as names and shapes: which layers have them, and what they add to a weight.

An adapter adds (alpha / rank) B A x to W x, with A `[rank, inputs]` and B `[outputs, rank]`, B zero
at the start (Hu et al. 2021, section 4.1). Each Hugging Face linear layer has one of its own, also
where several of them are one matrix here (q, k and v; gate and up): so what is trained is exactly
what PEFT calls lora_A and lora_B, and export renames tensors. Rows of B are in Hugging Face's
order; whoever adds adapters to a matrix of ours puts them in its order with the weight map's layout
(`models.lora` in training, `add_adapters` on the way out).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignctl.config.sections import Lora, Model
from alignctl.models.families import weight_map
from alignctl.models.weight_map import COLUMN, REPLICATED, ROW, Weight, hf_shapes

if TYPE_CHECKING:
    from torch import Tensor

PEFT_PREFIX = "base_model.model."
"""Of names in an adapter file, before those of the model itself."""


@dataclass(frozen=True)
class Adapter:
    """The adapter of one Hugging Face linear layer.

    Attributes:
        weight: Our Megatron name of the matrix that its layer is, or is a part of.
        part: Which part.
        module: Hugging Face's name of the layer's last module, such as q_proj.
        shape: Of the layer's own weight, `[outputs, inputs]`.
        a: Row of the weight map for A `[rank, inputs]`; PEFT's name stands for Hugging Face's.
        b: The same for B `[outputs, rank]`.
    """

    weight: str
    part: int
    module: str
    shape: tuple[int, int]
    a: Weight
    b: Weight

    @property
    def names(self) -> tuple[str, str]:
        """Our Megatron names of A and B."""
        return self.a.megatron, self.b.megatron


def adapters(model: Model, lora: Lora) -> list[Adapter]:
    """List the adapters of a model, in model order.

    Tensor parallelism cuts the outer side of each, as it cuts the weight: rows of B where the
    weight's rows are cut, columns of A where its columns are; every rank has the inner side whole.
    """
    rows, targets = weight_map(model), lora.modules(model.family)
    shapes = hf_shapes(rows, model)
    found = []
    for name, row in rows.items():
        for part, hf in enumerate(row.hf):
            layer, _, kind = hf.rpartition(".")
            module = layer.rpartition(".")[2]
            if module in targets and kind == "weight":
                outputs, inputs = shapes[hf]
                cut_a, cut_b = (ROW, REPLICATED) if row.layout is ROW else (REPLICATED, COLUMN)
                ours, peft = name.removesuffix("weight") + f"lora.{module}", PEFT_PREFIX + layer
                a = Weight(f"{ours}.a", (f"{peft}.lora_A.weight",), cut_a, "layer")
                b = Weight(f"{ours}.b", (f"{peft}.lora_B.weight",), cut_b, "layer")
                found.append(Adapter(name, part, module, (outputs, inputs), a, b))
    return found


def adapter_map(model: Model, lora: Lora) -> dict[str, Weight]:
    """Build the rows of the weight map for all adapters, by our Megatron names."""
    return {row.megatron: row for each in adapters(model, lora) for row in (each.a, each.b)}


def adapter_shapes(model: Model, lora: Lora) -> dict[str, tuple[int, int]]:
    """Compute the full shape of every A and B, by our Megatron names."""
    found = {}
    for each in adapters(model, lora):
        outputs, inputs = each.shape
        found[each.a.megatron] = (lora.rank, inputs)
        found[each.b.megatron] = (outputs, lora.rank)
    return found


def describe(model: Model, lora: Lora) -> str:
    """Say how many parameters are trained, of which layers; a score head is not counted."""
    trained = sum(rows * columns for rows, columns in adapter_shapes(model, lora).values())
    shapes = hf_shapes(weight_map(model), model).values()
    total = sum(map(math.prod, shapes))
    dropout = f"dropout {lora.dropout:g}, " if lora.dropout else ""
    return (
        f"lora: rank {lora.rank}, alpha {lora.alpha:g}, {dropout}on "
        f"{', '.join(lora.modules(model.family))}: {trained:,} parameters are trained, "
        f"{trained / total:.2%} of the model's {total:,}"
    )


def new_adapter(name: str, shape: tuple[int, int], *, seed: int) -> Tensor:
    """Make a full A or B as training starts with it, fp32: A random, B zero.

    A is uniform within 1 / sqrt(inputs) of 0, as PEFT has it (Kaiming with a = sqrt(5)).

    Args:
        name: Our Megatron name.
        shape: The full shape.
        seed: A is a function of it and the name, so the same at every layout.
    """
    import torch

    if name.endswith(".b"):
        return torch.zeros(shape)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    bound = shape[1] ** -0.5
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def group_by_weight(model: Model, lora: Lora) -> dict[str, list[Adapter]]:
    """Group the adapters by the matrix of ours that they belong to, by its Megatron name."""
    found: dict[str, list[Adapter]] = {}
    for each in adapters(model, lora):
        found.setdefault(each.weight, []).append(each)
    return found


def add_adapters(
    full: Tensor,
    row: Weight,
    model: Model,
    lora: Lora,
    own: Iterable[Adapter],
    tensors: Mapping[str, Tensor],
) -> Tensor:
    """Merge adapters into a full matrix of ours; the result is computed in fp32, not rounded.

    Args:
        full: The matrix `[outputs, inputs]`.
        row: Its row of the weight map.
        model: The architecture.
        lora: The adapters' settings.
        own: Its adapters.
        tensors: Their full A and B by our names.
    """
    parts = [part.float() for part in row.layout.split(full, model)]
    for each in own:
        a, b = (tensors[name].float() for name in each.names)
        parts[each.part] = parts[each.part] + lora.alpha / lora.rank * (b @ a)
    return row.layout.merge(parts, model)
