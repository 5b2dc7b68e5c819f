"""The heads of reward models: hidden states to one number, in float32 whatever the model's type."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Linear, Module, ReLU, Sequential
from torch.nn.functional import linear
from typing_extensions import override

from alignctl.config.sections import Head, Model
from alignctl.models.weight_map import SCORE_HEADS, full_shape


class Float32Linear(Linear):
    """A linear layer that computes in float32: answers differ by less than bf16 can tell apart."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        bias = cast(Tensor | None, self.bias)
        return linear(input.float(), self.weight.float(), None if bias is None else bias.float())


def score_head(head: Head, hidden_size: int, **where: Any) -> Module:
    """Make a head `[..., H]` -> `[..., 1]` fp32, its weights named as in the weight map, not set.

    Args:
        head: "linear" or "pooler".
        hidden_size: H.
        where: `device` and `dtype` of the weights.
    """
    with torch.device("meta"):
        if head == "linear":
            made: Module = Float32Linear(hidden_size, 1, bias=False)
        else:
            made = Sequential()
            made.add_module("dense1", Float32Linear(hidden_size, hidden_size))
            made.add_module("relu", ReLU())
            made.add_module("dense2", Float32Linear(hidden_size, 1))
    if "device" in where:
        made = made.to_empty(device=where["device"])
    return made.to(dtype=where["dtype"]) if "dtype" in where else made


def new_weights(head: Head, model: Model, *, seed: int) -> dict[str, Tensor]:
    """Draw a head for a policy that has none: full tensors by their names, fp32.

    Matrices are drawn from N(0, 1 / (hidden_size + 1)), so that the first scores have a deviation
    near 1 (Stiennon et al. 2020, their code; Huang et al. 2024, detail 5); biases are 0.

    Args:
        head: "linear" or "pooler".
        model: The architecture.
        seed: The weights are a function of it, and the same on every rank.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for row in SCORE_HEADS[head]:
        shape = full_shape(row, model)
        drawn = torch.randn(shape, generator=generator) / (model.hidden_size + 1) ** 0.5
        found[row.megatron] = cast(Tensor, drawn if len(shape) > 1 else torch.zeros(shape))
    return found
