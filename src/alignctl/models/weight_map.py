"""How a Hugging Face tensor becomes a Megatron tensor, and how tensor parallelism cuts it.

Each family lists its weights once as `Weight` rows. Conversion in both directions, loading at any
layout and the push into a rollout engine read that list; names are known here and there alone.

Shapes: a *full* tensor is the Megatron tensor of one layer before tensor parallelism, without
vocabulary padding; a *shard* is one tensor-parallel rank's part of it. Every layout only moves
values, so each conversion is exact in any dtype; and it moves those of torch tensors and of NumPy
arrays alike, since conversions do without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from typing_extensions import override

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from alignctl.config.sections import Model


Array = TypeVar("Array", "Tensor", "NDArray[np.unsignedinteger[Any]]")
"""The elements of a tensor, in torch's hands or, as bits, in NumPy's."""


def _join(parts: Sequence[Array], dim: int = 0) -> Array:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts, axis=dim)
    import torch

    return torch.cat(list(parts), dim=dim)


def _cut(whole: Array, number: int, count: int, dim: int = 0) -> Array:
    """Cut out one of so many equal parts, which share the memory of the whole."""
    size = whole.shape[dim] // count
    return whole[(slice(None),) * dim + (slice(number * size, (number + 1) * size),)]


class Layout:
    """The parallel layout of one tensor. The default: the same tensor on every rank.

    Subclasses say what tensor parallelism does; `merge` and `split` are the identity unless
    several Hugging Face tensors make one Megatron tensor.
    """

    def merge(self, parts: Sequence[Array], model: Model) -> Array:
        """Make the full Megatron tensor from its Hugging Face tensors, in the order of `hf`."""
        (part,) = parts
        return part

    def split(self, full: Array, model: Model) -> list[Array]:
        """Undo `merge`."""
        return [full]

    def shard(self, full: Array, rank: int, size: int) -> Array:
        """Cut out the part of `full` that tensor-parallel rank `rank` of `size` holds."""
        return full

    def unshard(self, shards: Sequence[Array]) -> Array:
        """Undo `shard`, from all ranks' parts in rank order."""
        return shards[0]

    def shard_shape(self, full: tuple[int, ...], size: int) -> tuple[int, ...]:
        """Compute the shape of `shard`'s result; `size` has to divide the dimension that is cut."""
        return full

    def unshard_shape(self, shard: tuple[int, ...], size: int) -> tuple[int, ...]:
        """Compute the shape of `unshard`'s result."""
        return shard


class Replicated(Layout):
    """Norms and row-parallel biases: every rank holds the whole tensor."""


@dataclass(frozen=True)
class Sliced(Layout):
    """Contiguous slices along one dimension.

    Attributes:
        dim: 0 for a column-parallel linear (output features) and its bias, 1 for a row-parallel
            linear (input features).
    """

    dim: int

    @override
    def shard(self, full: Array, rank: int, size: int) -> Array:
        return _cut(full, rank, size, self.dim)

    @override
    def unshard(self, shards: Sequence[Array]) -> Array:
        return _join(shards, self.dim)

    @override
    def shard_shape(self, full: tuple[int, ...], size: int) -> tuple[int, ...]:
        return (*full[: self.dim], full[self.dim] // size, *full[self.dim + 1 :])

    @override
    def unshard_shape(self, shard: tuple[int, ...], size: int) -> tuple[int, ...]:
        return (*shard[: self.dim], shard[self.dim] * size, *shard[self.dim + 1 :])


COLUMN = Sliced(0)
ROW = Sliced(1)
REPLICATED = Replicated()


class Vocabulary(Sliced):
    """Embedding and output rows: column slices of a table padded with zero rows."""

    def __init__(self) -> None:
        super().__init__(dim=0)

    @override
    def merge(self, parts: Sequence[Array], model: Model) -> Array:
        (part,) = parts
        return part[: model.vocab_size]

    @override
    def split(self, full: Array, model: Model) -> list[Array]:
        return [full[: model.vocab_size]]


class GatedColumn(Sliced):
    """Gate and up projections of a gated MLP, `[gate; up]`, each cut on its own.

    Rank r holds `[gate_r; up_r]`, so a shard is not a contiguous slice of the full tensor.
    """

    def __init__(self) -> None:
        super().__init__(dim=0)

    @override
    def merge(self, parts: Sequence[Array], model: Model) -> Array:
        return _join(parts)

    @override
    def split(self, full: Array, model: Model) -> list[Array]:
        return [_cut(full, 0, 2), _cut(full, 1, 2)]

    @override
    def shard(self, full: Array, rank: int, size: int) -> Array:
        return _join([_cut(_cut(full, half, 2), rank, size) for half in (0, 1)])

    @override
    def unshard(self, shards: Sequence[Array]) -> Array:
        return _join([_cut(shard, half, 2) for half in (0, 1) for shard in shards])


class GroupedQKV(Sliced):
    """Query, key and value rows interleaved by query group: `[q ... q k v]` for each group.

    A slice of whole groups is then a smaller model of the same kind, which is why Megatron
    orders them so. Works for weights `[rows, hidden]` and biases `[rows]`.
    """

    def __init__(self) -> None:
        super().__init__(dim=0)

    @override
    def merge(self, parts: Sequence[Array], model: Model) -> Array:
        groups, (first, *_) = model.num_query_groups, parts
        grouped = [part.reshape(groups, -1, model.head_width, *part.shape[1:]) for part in parts]
        return _join(grouped, 1).reshape(-1, *first.shape[1:])

    @override
    def split(self, full: Array, model: Model) -> list[Array]:
        groups = model.num_query_groups
        queries = model.num_attention_heads // groups
        grouped = full.reshape(groups, queries + 2, model.head_width, *full.shape[1:])
        parts = grouped[:, :queries], grouped[:, queries : queries + 1], grouped[:, queries + 1 :]
        return [part.reshape(-1, *full.shape[1:]) for part in parts]


VOCABULARY = Vocabulary()
GATED_COLUMN = GatedColumn()
GROUPED_QKV = GroupedQKV()


@dataclass(frozen=True)
class Weight:
    """One row of a family's weight map.

    Attributes:
        megatron: Parameter name in our Megatron model; `{layer}` stands for the layer number,
            counted over the whole model.
        hf: Names of the Hugging Face tensors it is made of, with the same placeholder.
        layout: How they are merged and cut.
        place: Which pipeline stage holds it: the first ("embedding"), its layer's ("layer"), or
            the last ("head").
    """

    megatron: str
    hf: tuple[str, ...]
    layout: Layout
    place: Literal["embedding", "layer", "head"]

    def fill_layer(self, layer: int) -> Weight:
        """Fill in the placeholder of this row; a row without one stays as it is."""
        return Weight(
            self.megatron.format(layer=layer),
            tuple(name.format(layer=layer) for name in self.hf),
            self.layout,
            self.place,
        )


def _score(name: str) -> Weight:
    return Weight(name, (name,), REPLICATED, "head")


SCORE_HEADS: dict[str, tuple[Weight, ...]] = {
    "linear": (_score("score.weight"),),
    "pooler": tuple(
        _score(f"pooler_head.dense{number}.{part}")
        for number in (1, 2)
        for part in ("weight", "bias")
    ),
}
"""The heads of reward models, by their kind; the same for every family and on both sides."""


HEAD_MODULES = {"linear": "score", "pooler": "pooler_head"}
"""The attribute of a model that holds such a head, as the names in the weight map have it."""


def expand(weights: Sequence[Weight], num_layers: int) -> dict[str, Weight]:
    """Build the map of a whole model: Megatron parameter name to its row, in model order."""
    rows: list[Weight] = [row for row in weights if row.place == "embedding"]
    for layer in range(num_layers):
        rows += [row.fill_layer(layer) for row in weights if row.place == "layer"]
    rows += [row for row in weights if row.place == "head"]
    return {row.megatron: row for row in rows}


def pad_rows(full: Array, rows: int) -> Array:
    """Add zero rows at the end up to `rows`: the vocabulary padding of Megatron's embedding."""
    if (missing := rows - full.shape[0]) <= 0:
        return full
    if isinstance(full, np.ndarray):
        return np.pad(full, ((0, missing), (0, 0)))
    from torch.nn.functional import pad

    return pad(full, (0, 0, 0, missing))


def hf_shapes(rows: Mapping[str, Weight], model: Model) -> dict[str, tuple[int, ...]]:
    """Compute the shape of every Hugging Face tensor, by name; no memory is taken for them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for row in rows.values():
        full = np.broadcast_to(np.uint8(0), full_shape(row, model))
        for name, part in zip(row.hf, row.layout.split(full, model), strict=True):
            shapes[name] = tuple(part.shape)
    return shapes


def full_shape(row: Weight, model: Model) -> tuple[int, ...]:
    """Compute the shape of a row's full Megatron tensor (vocabulary not padded)."""
    hidden, ffn = model.hidden_size, model.ffn_hidden_size
    name, kind = row.megatron.removesuffix(".weight").removesuffix(".bias"), row.megatron
    outputs, inputs = {
        "linear_qkv": (
            model.attention_width + 2 * model.num_query_groups * model.head_width,
            hidden,
        ),
        "linear_proj": (hidden, model.attention_width),
        "q_layernorm": (model.head_width, None),
        "k_layernorm": (model.head_width, None),
        "linear_fc1": (2 * ffn if isinstance(row.layout, GatedColumn) else ffn, hidden),
        "linear_fc2": (hidden, ffn),
        "word_embeddings": (model.vocab_size, hidden),
        "output_layer": (model.vocab_size, hidden),
        "score": (1, hidden),
        "dense1": (hidden, hidden),
        "dense2": (1, hidden),
    }.get(name.rsplit(".", 1)[-1], (hidden, None))
    return (outputs,) if inputs is None or kind.endswith(".bias") else (outputs, inputs)
