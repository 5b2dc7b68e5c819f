"""A model with more rows in its vocabulary than it was saved with."""

from dataclasses import replace
from typing import TYPE_CHECKING

from alignctl.checkpoints.source import Source
from alignctl.checkpoints.tensors.lazy import LazyTensor
from alignctl.models.families import weight_map
from alignctl.models.weight_map import Vocabulary

if TYPE_CHECKING:
    from torch import Tensor


def extend_vocabulary(source: Source, extra: int) -> Source:
    """Return the same model with `extra` more rows in the embedding and in the output layer.

    Each new row is the mean of all rows of its table: an output row of that kind keeps a new token
    from being likelier than the others before it was ever seen (Hewitt 2021).

    Args:
        source: The model; nothing is read of it before a tensor is made.
        extra: Rows; of 0 nothing changes.
    """
    if not extra:
        return source
    rows, table = source.model.vocab_size + extra, weight_map(source.model, source.head)
    tensors = {
        name: _grown(tensor, rows) if isinstance(table[name].layout, Vocabulary) else tensor
        for name, tensor in source.tensors.items()
    }
    return replace(
        source,
        model=source.model.model_copy(update={"vocab_size": rows}),
        tensors=tensors,
        description=f"{source.description}; vocabulary {source.model.vocab_size} -> {rows}, new "
        "rows are means",
    )


def _grown(tensor: LazyTensor, rows: int) -> LazyTensor:
    def grow(table: "Tensor") -> "Tensor":
        import torch

        mean = table.double().mean(dim=0).to(table.dtype)
        return torch.cat([table, mean.expand(rows - len(table), -1)])

    return tensor.compute(grow, shape=(rows, *tensor.shape[1:]))
