"""Whether a converted model computes the same as its source, one tensor in memory at a time.

Transformers runs the side that has Hugging Face's names and Megatron-Core the other one: two
implementations that share no code (but the two-layer heads of reward models, which transformers
does not have), on the same tokens, layer by layer side by side. A Hugging Face folder is loaded by
transformers itself, so that what alignctl reads in it is compared with what everybody else reads.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from alignctl.checkpoints.auxiliary_files import read_json
from alignctl.checkpoints.tensors.lazy import LazyTensor
from alignctl.config.sections import Head, Model
from alignctl.engines.streamed.folder import FolderForward
from alignctl.engines.streamed.forward import SEED, Probe, Scratch
from alignctl.engines.streamed.hf import TransformersForward
from alignctl.engines.streamed.megatron import MegatronForward, single_rank
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
    """Distance between two tensors that should be equal.

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
        """Difference as a part of the largest value."""
        if self.absolute == 0:
            return 0.0
        return self.absolute / self.largest if 0 < self.largest < math.inf else math.inf

    @property
    def is_rounding(self) -> bool:
        """True if it is no more than rounding makes."""
        return self.relative <= TOLERANCE


@dataclass(frozen=True)
class Comparison:
    """Result of `compare`.

    Attributes:
        output: Of the logits or scores.
        hidden: The largest relative one of the hidden states; where any is more than rounding
            makes, the first of those, since the layers behind it inherit it.
        num_layers: How many layers were compared.
        num_tokens: How many tokens ran through them.
        num_columns: Logits per token: the compared rows of the vocabulary; 1 for scores.
        texts: Of the scores of whole texts in a batch with padding; None where none was run.
    """

    output: Difference
    hidden: Difference
    num_layers: int
    num_tokens: int
    num_columns: int
    texts: Difference | None = None

    @property
    def is_same(self) -> bool:
        """True if both compute the same, up to rounding, at every place that was compared."""
        parts = (self.output, self.hidden, *([self.texts] if self.texts else []))
        return all(part.is_rounding for part in parts)

    def describe(self) -> str:
        """Describe the result in one line, for the user."""
        output, hidden = self.output, self.hidden
        columns = f" x {self.num_columns} rows" if output.place == "logits" else ""
        found = (
            f"{output.place} of {self.num_tokens} tokens{columns} differ by at most"
            f" {output.absolute:.1e}, {output.relative:.1e} of the largest ({output.largest:.2g})"
        )
        if self.texts:
            found += f"; those of padded texts by {self.texts.absolute:.1e}"
        if self.is_same:
            return f"{found}; {self.num_layers} layers compared"
        first = output if hidden.is_rounding else hidden
        if self.texts and first.is_rounding:
            first = self.texts
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
    folder: Path | None = None,
    is_padded: bool = False,
) -> Comparison:
    """Run both and compare them; memory holds the largest tensor, in its type and in float32.

    Both run in float32. The source is first rounded to the types that were written: the conversion
    is compared, not the rounding that was asked for.

    Args:
        source: Full tensors by their names in `weight_map(model, head)`, the vocabulary not padded:
            what transformers runs.
        written: The same of what was written: what Megatron runs.
        model: The architecture.
        head: What is on top.
        layers: Which layers run, and on what.
        on_layer: Called with the number of each layer after it ran on both sides.
        folder: The Hugging Face folder that the source is of, which transformers then loads
            itself; None where it could not: then its modules get the tensors.
        is_padded: Whether a reward model's folder also has to score texts in a batch with padding
            on the right as Megatron scores each of them: by its last token.

    Raises:
        RunError: A tensor does not have the shape that the model needs.
        UserError: Transformers cannot load the folder.
    """
    is_padded = is_padded and head == "linear" and folder is not None
    stop = _stop(folder) if is_padded and folder else None
    probe, scratch = Probe.of(model, stop=stop), Scratch()
    numbers = _numbers(model.num_layers, layers)
    random = _random_hidden(len(probe.tokens), model.hidden_size) if layers == "spot" else None
    rounded = {name: source[name].to(written[name].dtype) for name in weight_map(model, head)}
    theirs: FolderForward | TransformersForward
    with single_rank(), torch.no_grad():
        if folder is None:
            theirs = TransformersForward(rounded, model, head, probe, scratch)
        else:
            theirs = FolderForward(
                folder,
                source,
                head,
                probe,
                scratch,
                dtype=next(iter(rounded.values())).dtype.torch,
                numbers=numbers,
                random=random,
                is_padded=is_padded,
            )
        ours = MegatronForward(written, model, head, probe, scratch)
        hidden, right, found = _run_both(theirs, ours, numbers, random, on_layer)
    output = _difference("logits" if head == "lm" else "scores", right, found)
    return _sum_up(output, hidden, right.shape, _compare_texts(theirs, found, probe))


def _run_both(
    theirs: FolderForward | TransformersForward,
    ours: MegatronForward,
    numbers: Sequence[int],
    random: Tensor | None,
    on_layer: Callable[[int], None],
) -> tuple[list[Difference], Tensor, Tensor]:
    """Run both sides layer by layer, and compare what leaves the embedding and each layer.

    Args:
        theirs: Transformers' side.
        ours: Megatron's.
        numbers: Layers that run.
        random: What each layer and the head get instead of what comes before `[T, H]`, or None.
        on_layer: Called with the number of each layer after it ran on both sides.

    Returns:
        The differences, and the outputs of both sides.
    """
    right, found = theirs.embed(), ours.embed()
    differences = [_difference("embedding", right, found)]
    for number in numbers:
        if random is not None:
            right = found = random
        right, found = theirs.layer(number, right), ours.layer(number, found)
        differences.append(_difference(f"layer {number}", right, found))
        on_layer(number)
    if random is not None:
        right = found = random
    return differences, theirs.output(right), ours.output(found)


def _compare_texts(
    theirs: FolderForward | TransformersForward, found: Tensor, probe: Probe
) -> Difference | None:
    """Compare the scores of texts in a batch with padding with those of their last tokens."""
    if not isinstance(theirs, FolderForward) or theirs.pooled is None:
        return None
    last = found[torch.tensor(probe.ends) - 1, 0]
    return _difference("texts in a batch with padding", theirs.pooled, last)


def _stop(folder: Path) -> int | None:
    """Return the token that ends a text, by a folder's config."""
    told = read_json(folder / "config.json").get("eos_token_id")
    return next(iter(told), None) if isinstance(told, list) else told


def _numbers(num_layers: int, layers: Layers) -> list[int]:
    if layers == "all":
        return [*range(num_layers)]
    return sorted({0, num_layers // 2, num_layers - 1})


def _random_hidden(num_tokens: int, hidden_size: int) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return SPOT_SCALE * torch.randn(num_tokens, hidden_size, generator=generator)


def _sum_up(
    output: Difference, hidden: Sequence[Difference], shape: Sequence[int], texts: Difference | None
) -> Comparison:
    """Put together what was compared; the outputs have a shape `[T, columns]`."""
    wrong = [each for each in hidden if not each.is_rounding]
    return Comparison(
        output=output,
        hidden=wrong[0] if wrong else max(hidden, key=lambda each: each.relative),
        num_layers=len(hidden) - 1,  # the first is the embedding's
        num_tokens=shape[0],
        num_columns=shape[1],
        texts=texts,
    )


def _difference(place: str, right: Tensor, found: Tensor) -> Difference:
    absolute = float((right - found).abs().max())
    largest = float(right.abs().max())
    return Difference(place, absolute if math.isfinite(absolute) else math.inf, largest)
