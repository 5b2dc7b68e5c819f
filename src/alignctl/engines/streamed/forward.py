"""A forward pass that never holds a model: its weights come and go while it runs.

What runs is a real model of one layer and a few thousand vocabulary rows, built without memory (on
the meta device). A weight is made in the moment before its module runs, in float32, and forgotten
in the moment after, so what is held is one tensor, whatever the size of the model. The one layer
runs as often as the model has layers, each time with the next layer's weights.

Notation used for tensor shapes:
    - T: tokens of the probe; R: vocabulary rows of the probe; H: hidden size
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from alignctl.checkpoints.tensors.lazy import LazyTensor
from alignctl.config.sections import Head, Model
from alignctl.errors import RunError
from alignctl.models.families import weight_map
from alignctl.models.score_head import score_head
from alignctl.models.weight_map import HEAD_MODULES, Vocabulary, Weight, full_shape

SEED = 1
NUM_TOKENS = 32
"""Enough for every head to have something to attend to, and so few that the time goes into making
the weights."""
MAX_ROWS = 4096
"""Vocabulary rows that are kept of the embedding and of the output layer."""


@dataclass(frozen=True)
class Probe:
    """Tokens and vocabulary rows that are run: the same for every model of one vocabulary.

    Attributes:
        rows: The vocabulary rows that are kept `[R]`, ascending.
        tokens: The sequence `[T]`, as places in `rows`.
        ends: How many of its tokens, from the first one on, are a document each; the longest first.
    """

    rows: Tensor
    tokens: Tensor
    ends: tuple[int, ...]

    @classmethod
    def of(cls, model: Model, *, stop: int | None = None) -> "Probe":
        """Choose the first and last rows, where special and added tokens are, and random others.

        The tokens are spread over the rows, first and last included, in a random order.

        Args:
            model: The whole model.
            stop: A token that ends each of the documents, if they end with one.
        """
        generator = torch.Generator().manual_seed(SEED)
        rows, quarter = torch.arange(model.vocab_size), MAX_ROWS // 4
        if model.vocab_size > MAX_ROWS:
            inner = torch.randperm(model.vocab_size - 2 * quarter, generator=generator) + quarter
            others = inner[: MAX_ROWS - 2 * quarter].sort().values
            rows = torch.cat([rows[:quarter], others, rows[-quarter:]])
        num_tokens = min(NUM_TOKENS, model.max_position_embeddings)
        spread = torch.linspace(0, len(rows) - 1, num_tokens).long()
        tokens = spread[torch.randperm(num_tokens, generator=generator)]
        ends = tuple(
            sorted({max(1, num_tokens * part // 4) for part in (4, 3, 2, 1)}, reverse=True)
        )
        if stop is not None:
            ids = rows[tokens]
            rows = torch.cat([rows, torch.tensor([stop])]).unique()
            ids[torch.tensor(ends) - 1] = stop
            tokens = torch.searchsorted(rows, ids)
        return cls(rows, tokens, ends)

    @property
    def token_ids(self) -> Tensor:
        """Sequence `[T]`, as ids of the whole vocabulary."""
        return self.rows[self.tokens]


class Scratch:
    """Room for one matrix in float32, used again and again, by several models in turn.

    In new memory the same takes seven times as long, for the kernel clears every page first.
    """

    def __init__(self) -> None:
        self._room = torch.empty(0)

    def convert_to_float(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Convert parts to float32, over those of the call before; float32 ones stay in place."""
        if all(part.dtype == torch.float32 for part in parts):
            return [*parts]
        sizes = [part.numel() for part in parts]
        if sum(sizes) > self._room.numel():
            self._room = torch.empty(sum(sizes))
        places = self._room[: sum(sizes)].split(sizes)
        return [
            place.view(part.shape).copy_(part) for place, part in zip(places, parts, strict=True)
        ]


class StreamedForward(ABC):
    """A model whose weights come and go: call `embed`, `layer` by layer and `output`.

    Under `no_grad`, and one model at a time of those that share a `Scratch`.
    """

    def __init__(
        self,
        module: Module,
        tensors: Mapping[str, LazyTensor],
        model: Model,
        head: Head,
        probe: Probe,
        scratch: Scratch,
    ) -> None:
        """Arrange that the weights of a module are filled before use, and emptied after it.

        Args:
            module: The model that `one_layer` describes, its parameters on the meta device.
            tensors: Full tensors by their Megatron names, the vocabulary not padded.
            model: The whole model.
            head: What is on top.
            probe: What is run.
            scratch: Where matrices are turned into float32.
        """
        self._tensors, self._model = tensors, model
        self._probe, self._scratch = probe, scratch
        self._number = 0
        self._score: Module | None = None
        if head != "lm":
            self._score = score_head(head, model.hidden_size)
            module.add_module(HEAD_MODULES[head], self._score)
        for row in weight_map(one_layer(model, probe), head).values():
            self._attach(row, [_place(module, name) for name in self._names(row)])
        module.eval()

    @abstractmethod
    def embed(self) -> Tensor:
        """Compute what enters the first layer `[T, H]`."""

    def layer(self, number: int, hidden: Tensor) -> Tensor:
        """Run one layer, counted from 0: `[T, H]` -> `[T, H]`."""
        self._number = number
        return self._run_layer(hidden)

    @abstractmethod
    def output(self, hidden: Tensor) -> Tensor:
        """Run final norm and head: `[T, H]` -> logits `[T, R]` or scores `[T, 1]`."""

    @abstractmethod
    def _run_layer(self, hidden: Tensor) -> Tensor:
        """Run the module's one layer: `[T, H]` -> `[T, H]`."""

    @abstractmethod
    def _names(self, row: Weight) -> Sequence[str]:
        """List the module's parameters that a row fills, in the order they are used."""

    @abstractmethod
    def _parts(self, row: Weight, full: Tensor) -> Sequence[Tensor]:
        """Split a row's full tensor into the values of those parameters."""

    def _attach(self, row: Weight, places: Sequence[tuple[Module, str]]) -> None:
        """Fill a row's parameters before the first of them is used, empty them after the last.

        A module that ran without its weights would fail: nothing can be computed on meta.
        """
        empty = [getattr(owner, name) for owner, name in places]
        places[0][0].register_forward_pre_hook(lambda *_: _fill(places, self._make(row)))
        places[-1][0].register_forward_hook(lambda *_: _fill(places, empty))

    def _make(self, row: Weight) -> list[Parameter]:
        """Make a row's parameters for the layer that runs now."""
        name = row.megatron.replace("layers.0.", f"layers.{self._number}.", 1)
        if row.megatron == "output_layer.weight" and self._model.tie_embeddings:
            name = "embedding.word_embeddings.weight"
        tensor, shape = self._tensors[name], full_shape(row, self._model)
        full = tensor.make()
        if full.shape != shape:
            raise RunError(
                f"{tensor.where}: has the shape {[*full.shape]}, the model needs {[*shape]}"
            )
        if isinstance(row.layout, Vocabulary):
            full = full[self._probe.rows]
        parts = self._parts(row, full)
        if full.ndim == 2:
            floats = self._scratch.convert_to_float(parts)
        else:
            # Not in shared memory: Megatron adds some biases after their module has run.
            floats = [part.float() for part in parts]
        return [Parameter(part, requires_grad=False) for part in floats]


def one_layer(model: Model, probe: Probe) -> Model:
    """Describe the model that is built: one layer, the probe's rows, an output layer of its own."""
    changes = {"num_layers": 1, "vocab_size": len(probe.rows), "vocab_divisor": 1}
    return model.model_copy(update={**changes, "tie_embeddings": False})


def _place(module: Module, name: str) -> tuple[Module, str]:
    """Find the submodule that a parameter belongs to, and the parameter's name there."""
    owner, _, attribute = name.rpartition(".")
    return module.get_submodule(owner), attribute


def _fill(places: Sequence[tuple[Module, str]], parameters: Sequence[Parameter]) -> None:
    for (owner, name), parameter in zip(places, parameters, strict=True):
        setattr(owner, name, parameter)
