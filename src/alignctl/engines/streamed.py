"""Whether a converted model computes the same as its source, one tensor in memory at a time.

Transformers runs the source and Megatron-Core the written tensors, whatever the format of either:
two implementations that share no code (but the heads of reward models, which transformers does not
have), on the same tokens, layer by layer side by side.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from alignctl.checkpoints.lazy import LazyTensor
from alignctl.config.sections import Head, Model
from alignctl.engines.streamed_forward import SEED, Probe, Scratch
from alignctl.engines.streamed_hf import TransformersForward
from alignctl.engines.streamed_megatron import MegatronForward, single_rank
from alignctl.models.families import weight_map

Layers = Literal["all", "spot"]
"""all: hidden states flow through every layer. spot: the first, a middle and the last layer each
get the same random hidden states on both sides, and so does the head."""

TOLERANCE = 1e-4
"""Largest difference, as a part of the largest value. Sums in another order, in float32, make 4e-6
of it in 32 layers of 7B's size, and 2e-5 at worst in 80 small layers of random weights ten times as
large as usual. A matrix of another layer makes 5e-2, rounding one side to bfloat16 2e-3."""

SPOT_SCALE = 0.01
"""Standard deviation of the random hidden states: about what leaves an embedding, so small that
what the layer adds is not lost beside them."""


@dataclass(frozen=True)
class Difference:
    """How far two tensors that should be equal lie apart.

    Attributes:
        place: What was compared: "embedding", "layer 3" (counted from 0), "logits" or "scores".
        absolute: Largest |difference|; infinite where a value is not finite.
        largest: Largest |value| of transformers.
    """

    place: str
    absolute: float
    largest: float

    @property
    def relative(self) -> float:
        """The difference as a part of the largest value."""
        if self.absolute == 0:
            return 0.0
        return self.absolute / self.largest if 0 < self.largest < math.inf else math.inf

    @property
    def is_rounding(self) -> bool:
        """Whether it is no more than rounding makes."""
        return self.relative <= TOLERANCE


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        output: Of the logits or scores.
        hidden: The largest relative one of the hidden states; where any is more than rounding
            makes, the first of those, since the layers behind it inherit it.
        num_layers: How many layers were compared.
        num_tokens: How many tokens ran through them.
        num_columns: Logits per token: the compared rows of the vocabulary; 1 for scores.
    """

    output: Difference
    hidden: Difference
    num_layers: int
    num_tokens: int
    num_columns: int

    @property
    def is_same(self) -> bool:
        """Whether both compute the same, up to rounding, at every place that was compared."""
        return self.output.is_rounding and self.hidden.is_rounding

    def describe(self) -> str:
        """One line for the user."""
        output, hidden = self.output, self.hidden
        columns = f" x {self.num_columns} rows" if output.place == "logits" else ""
        found = (
            f"{output.place} of {self.num_tokens} tokens{columns} differ by at most"
            f" {output.absolute:.1e}, {output.relative:.1e} of the largest ({output.largest:.2g})"
        )
        if self.is_same:
            return f"{found}; {self.num_layers} layers compared"
        first = output if hidden.is_rounding else hidden
        limit = f"rounding makes {TOLERANCE:.0e} at most"
        return f"{found}; {limit}; the first difference is at {first.place} ({first.relative:.1e})"


def compare(
    source: Mapping[str, LazyTensor],
    written: Mapping[str, LazyTensor],
    model: Model,
    head: Head,
    *,
    layers: Layers,
    on_layer: Callable[[int], None],
) -> Comparison:
    """Runs both and compares them; needs memory for the largest tensor, in its type and float32.

    Both run in float32. The source is first rounded to the types that were written, so that what
    is compared is the conversion and not the rounding that was asked for.

    Args:
        source: Full tensors by their Megatron names (those of `weight_map(model, head)`), the
            vocabulary not padded: what transformers runs.
        written: The same of what was written: what Megatron runs.
        model: The architecture.
        head: What is on top.
        layers: Which layers run, and on what.
        on_layer: Called with the number of each layer after it ran on both sides.

    Raises:
        RunError: A tensor does not have the shape that the model needs.
    """
    probe, scratch = Probe.of(model), Scratch()
    rounded = {name: source[name].to(written[name].dtype) for name in weight_map(model, head)}
    differences: list[Difference] = []
    with single_rank(), torch.no_grad():
        theirs = TransformersForward(rounded, model, head, probe, scratch)
        ours = MegatronForward(written, model, head, probe, scratch)
        right, found = theirs.embed(), ours.embed()
        differences.append(_difference("embedding", right, found))
        random = _random_hidden(right)
        for number in _numbers(model.num_layers, layers):
            if layers == "spot":
                right = found = random
            right, found = theirs.layer(number, right), ours.layer(number, found)
            differences.append(_difference(f"layer {number}", right, found))
            on_layer(number)
        if layers == "spot":
            right = found = random
        right, found = theirs.output(right), ours.output(found)
    wrong = [each for each in differences if not each.is_rounding]
    return Comparison(
        output=_difference("logits" if head == "lm" else "scores", right, found),
        hidden=wrong[0] if wrong else max(differences, key=lambda each: each.relative),
        num_layers=len(differences) - 1,
        num_tokens=right.shape[0],
        num_columns=right.shape[1],
    )


def _numbers(num_layers: int, layers: Layers) -> list[int]:
    if layers == "all":
        return [*range(num_layers)]
    return sorted({0, num_layers // 2, num_layers - 1})


def _random_hidden(like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return SPOT_SCALE * torch.randn(like.shape, generator=generator)


def _difference(place: str, right: Tensor, found: Tensor) -> Difference:
    absolute = float((right - found).abs().max())
    largest = float(right.abs().max())
    return Difference(place, absolute if math.isfinite(absolute) else math.inf, largest)
