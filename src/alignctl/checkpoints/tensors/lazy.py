"""Tensors that are read, cut or merged only when somebody asks for them.

Every format is read into a mapping from names to lazy tensors, and every format is written from
one. What lies between, the weight map, never holds more than one tensor.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from alignctl.checkpoints.auxiliary_files import explain_dangling
from alignctl.checkpoints.tensors.dtypes import Bits, DType, bits_of, dtype_of, tensor_of
from alignctl.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Spec:
    """Shape and type of a tensor, which are known before it is made.

    Attributes:
        shape: Its shape.
        dtype: Its type.
    """

    shape: tuple[int, ...]
    dtype: DType

    @staticmethod
    def of(tensor: "Tensor") -> "Spec":
        """Describe a tensor that is in memory."""
        return Spec(tuple(tensor.shape), dtype_of(tensor.dtype))

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def strides(self) -> tuple[int, ...]:
        """Elements from one to the next in each dimension, where all lie one after another."""
        return tuple(math.prod(self.shape[dim + 1 :]) for dim in range(len(self.shape)))

    @property
    def num_bytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class LazyTensor(Spec):
    """A tensor that is made when it is needed, anew each time.

    Attributes:
        bits: Produces its elements, in its shape.
        where: The file and the name it has there, for messages.
    """

    bits: Callable[[], Bits]
    where: str

    @staticmethod
    def holding(tensor: "Tensor", where: str) -> "LazyTensor":
        """Wrap a tensor that is in memory already."""
        spec = Spec.of(tensor)
        return LazyTensor(spec.shape, spec.dtype, lambda: bits_of(tensor), where)

    def make(self) -> "Tensor":
        """Make the tensor itself, in memory of its own, whatever becomes of the file."""
        bits = self.bits()
        return tensor_of(bits if bits.flags.owndata else bits.copy(), self.dtype)

    def guard(self) -> "LazyTensor":
        """Refuse the tensor, when it is made, if an element is infinite or NaN."""

        def check(bits: Bits) -> Bits:
            check_finite(bits, self.dtype, self.where)
            return bits

        return self.map(self.shape, check)

    def to(self, dtype: DType) -> "LazyTensor":
        """Convert the tensor to another type, when it is made."""
        return self if dtype == self.dtype else self.compute(lambda same: same, dtype)

    def map(self, shape: tuple[int, ...], change: Callable[[Bits], Bits]) -> "LazyTensor":
        """Apply a function that moves elements; the shape of its result is told beforehand."""
        return LazyTensor(shape, self.dtype, lambda: change(self.bits()), self.where)

    def compute(
        self,
        change: "Callable[[Tensor], Tensor]",
        dtype: DType | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> "LazyTensor":
        """Apply a function and round its result to a type; type and shape stay if not told."""
        new = dtype or self.dtype

        def bits() -> Bits:
            return bits_of(change(self.make()).to(new.torch))

        return LazyTensor(self.shape if shape is None else shape, new, bits, self.where)

    def tied_to(self, copy: "LazyTensor") -> "LazyTensor":
        """Compare the tensor, when it is made, with a copy that has to be equal."""

        def check(bits: Bits) -> Bits:
            is_same = (copy.shape, copy.dtype) == (self.shape, self.dtype)
            if not is_same or not np.array_equal(bits, copy.bits()):
                raise UserError(
                    f"{copy.where}: differs from the embedding, to which the config ties it",
                    "if the two are meant to differ, set tie_word_embeddings to false in "
                    "config.json; if not, files of two checkpoints may have been mixed",
                )
            return bits

        return self.map(self.shape, check)


def lazily(tree: Any, kind: type[T], lazy: Callable[[T, str], LazyTensor], at: str = "") -> Any:
    """Put a lazy tensor in place of each object of a kind in a tree of dicts and lists.

    Args:
        tree: The tree; whatever else is in it stays as it is.
        kind: Of the objects.
        lazy: Makes one, from the object and from the keys on the way to it, joined by dots.
        at: The keys on the way to the tree.
    """
    if isinstance(tree, kind):
        return lazy(tree, at)
    if isinstance(tree, Mapping):
        return {
            key: lazily(branch, kind, lazy, f"{at}.{key}" if at else str(key))
            for key, branch in tree.items()
        }
    if isinstance(tree, list | tuple):
        row = [lazily(branch, kind, lazy, f"{at}.{number}") for number, branch in enumerate(tree)]
        return tuple(row) if isinstance(tree, tuple) else row
    return tree


def unreadable(file: Path, kind: str, error: Exception) -> UserError:
    """Explain what is wrong with a weight file that its library refused."""
    if not file.is_file():
        return explain_dangling(file) if file.is_symlink() else UserError(f"{file}: no such file")
    if not os.access(file, os.R_OK):  # which safetensors reports as a file that is not there
        return UserError(f"{file}: cannot be read: permission denied")
    with file.open("rb") as stream:
        is_pointer = stream.read(64).startswith(b"version https://git-lfs")
    if is_pointer:
        return UserError(
            f"{file}: a Git-LFS pointer, not the weights themselves", "run `git lfs pull` in there"
        )
    return UserError(
        f"{file}: not a readable {kind} file: {error}",
        "the file is damaged or cut short: copy or download it again",
    )


_CHUNK = 1 << 17
"""Elements that are looked at together: they stay in the processor's cache."""


def _is_finite(bits: Bits, dtype: DType) -> bool:
    """Tell whether no element has an exponent of all ones: those are the largest of either sign."""
    flat, sign = np.ascontiguousarray(bits).reshape(-1), 1 << (8 * dtype.itemsize - 1)
    chunks = (flat[start : start + _CHUNK] for start in range(0, flat.size, _CHUNK))
    return all(
        int(chunk.max()) < sign + dtype.exponent
        and int(chunk.view(f"<i{dtype.itemsize}").max()) < dtype.exponent
        for chunk in chunks
    )


def check_finite(bits: Bits, dtype: DType, where: str) -> None:
    """Refuse weights that are broken.

    Raises:
        UserError: An element is infinite or NaN.
    """
    if not _is_finite(bits, dtype):
        exponent = bits.dtype.type(dtype.exponent)
        count = int(((bits & exponent) == exponent).sum())
        raise UserError(
            f"{where}: {count} of {bits.size} values are infinite or NaN",
            "the weights are damaged, or the training they come from diverged: use an older "
            "checkpoint, or copy the file again",
        )
