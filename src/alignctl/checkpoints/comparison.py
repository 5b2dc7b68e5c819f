"""Two checkpoints beside each other, tensor by tensor."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from alignctl.checkpoints.tensors.dtypes import DType
from alignctl.checkpoints.tensors.lazy import LazyTensor


@dataclass(frozen=True)
class Difference:
    """Largest difference between two tensors of one name.

    Attributes:
        name: Our Megatron name of the tensor.
        index: The element.
        first: Its value in the first checkpoint.
        second: Its value in the second one.
        num_different: Elements whose bits differ.
        numel: Elements in all.
    """

    name: str
    index: tuple[int, ...]
    first: float
    second: float
    num_different: int
    numel: int

    @property
    def size(self) -> float:
        """Absolute difference; infinite where one of the two is not a number."""
        size = abs(self.first - self.second)
        return size if size == size else float("inf")

    def describe(self) -> str:
        """Describe it in one line: where, both values, how many elements."""
        where = f"{self.name}[{', '.join(map(str, self.index))}]"
        return (
            f"{where}: {self.first:.9g} != {self.second:.9g} (difference {self.size:.3g}; "
            f"{self.num_different} of {self.numel} elements differ)"
        )


@dataclass(frozen=True)
class TensorComparison:
    """All tensors of two checkpoints.

    Attributes:
        num_tensors: Tensors that were compared.
        differences: Those that differ, the largest difference first.
    """

    num_tensors: int
    differences: tuple[Difference, ...]

    @property
    def is_identical(self) -> bool:
        """True if every bit is the same."""
        return not self.differences

    def describe(self) -> str:
        """Describe it in one line: how many tensors differ, and where most."""
        if self.is_identical:
            return f"all {self.num_tensors} tensors are identical"
        return (
            f"{len(self.differences)} of {self.num_tensors} tensors differ, most of all "
            + self.differences[0].describe()
        )


def compare(
    first: Mapping[str, LazyTensor],
    second: Mapping[str, LazyTensor],
    *,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> TensorComparison:
    """Compare full tensors of the same names and shapes, two in memory at a time.

    Where the types differ, both are compared as the narrower one, to which the wider one may have
    been rounded.
    """
    found = []
    for name, tensor in first.items():
        dtype = narrower(tensor.dtype, second[name].dtype)
        ours, theirs = tensor.to(dtype).make(), second[name].to(dtype).make()
        if (difference := _difference(name, ours, theirs)) is not None:
            found.append(difference)
        on_bytes(tensor.num_bytes)
    found.sort(key=lambda each: each.size, reverse=True)
    return TensorComparison(len(first), tuple(found))


def narrower(first: DType, second: DType) -> DType:
    """Return the type with the fewer bits of precision."""
    return max(first, second, key=lambda dtype: dtype.precision)


def _difference(name: str, first: Tensor, second: Tensor) -> Difference | None:
    ours, theirs = (t.contiguous().view(_INTEGERS[t.dtype.itemsize]) for t in (first, second))
    if torch.equal(ours, theirs):
        return None
    distance = (first.float() - second.float()).abs().nan_to_num(nan=float("inf"))
    # Of two zeros with other signs the distance is zero: any element that differs will do.
    distance += (ours != theirs) * torch.finfo(torch.float32).tiny
    index = torch.unravel_index(distance.argmax(), distance.shape)
    place = tuple(int(each) for each in index)
    return Difference(
        name,
        place,
        float(first[place]),
        float(second[place]),
        int((ours != theirs).sum()),
        first.numel(),
    )


_INTEGERS = {2: torch.int16, 4: torch.int32}
"""By size in bytes: the type in which bits are compared."""
