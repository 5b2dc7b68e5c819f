"""The types of weights, as what they are in a file: bits of a width, under a name.

Conversions move bits and compute nothing, so they need no PyTorch, whose import takes longer than
a gigabyte of weights.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Bits = NDArray[np.unsignedinteger[Any]]
"""The elements of a tensor as integers of their width, whatever they mean."""


@dataclass(frozen=True)
class DType:
    """A type of elements.

    Attributes:
        name: PyTorch's, which manifests and Hugging Face configs use too: "float32" ...
        itemsize: Bytes of one element.
        exponent: Where the exponent is in the bits of a float; all ones are infinity and NaN.
        precision: The distance from 1 to the next larger number; 1 for what is not a float.
    """

    name: str
    itemsize: int
    exponent: int = 0
    precision: float = 1.0

    @property
    def bits(self) -> np.dtype[np.unsignedinteger[Any]]:
        """Unsigned integer type of the same width."""
        return np.dtype(f"<u{self.itemsize}")

    @property
    def torch(self) -> "torch.dtype":
        """PyTorch's type of this name."""
        import torch

        found: torch.dtype = getattr(torch, self.name)
        return found


FLOAT32 = DType("float32", 4, 0x7F800000, 2.0**-23)
BFLOAT16 = DType("bfloat16", 2, 0x7F80, 2.0**-7)
FLOAT16 = DType("float16", 2, 0x7C00, 2.0**-10)

FLOATS = (FLOAT32, BFLOAT16, FLOAT16)
"""Those that can be trained."""

_OTHERS = {
    "float64": 8,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "complex64": 8,
    "uint64": 8,
    "uint32": 4,
    "uint16": 2,
    "uint8": 1,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "bool": 1,
}

DTYPES = {each.name: each for each in FLOATS} | {
    name: DType(name, size) for name, size in _OTHERS.items()
}
"""All that a file can hold, by name."""

BY_FLAG = {"fp32": FLOAT32, "bf16": BFLOAT16, "fp16": FLOAT16}
"""By the values of `--dtype`."""


def dtype_of(dtype: "torch.dtype") -> DType:
    """Translate a type of PyTorch's to ours."""
    return DTYPES[str(dtype).removeprefix("torch.")]


def bits_of(tensor: "Tensor") -> Bits:
    """Return the bits of a tensor, in its own memory where it is contiguous and on the CPU."""
    import torch

    dtype = dtype_of(tensor.dtype)
    integer = getattr(torch, f"int{8 * dtype.itemsize}")
    array: Bits = tensor.detach().cpu().contiguous().view(integer).numpy().view(dtype.bits)
    return array


def tensor_of(bits: Bits, dtype: DType) -> "Tensor":
    """Make a tensor of some bits, in the same memory."""
    import torch

    return torch.from_numpy(bits.view(f"<i{dtype.itemsize}")).view(dtype.torch)


def view_bytes(bits: Bits) -> memoryview:
    """Return the bytes of an array, without a copy where it is contiguous."""
    return np.ascontiguousarray(bits).reshape(-1).view(np.uint8).data
