"""Tensors that are read, cut or merged only when somebody asks for them.

Every format is read into a mapping from names to lazy tensors, and every format is written from
one. What lies between, the weight map, never holds more than one tensor.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from alignctl.errors import UserError


@dataclass(frozen=True)
class Spec:
    """What is known of a tensor before it is made.

    Attributes:
        shape: Its shape.
        dtype: Its type.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class LazyTensor(Spec):
    """A tensor that is made when it is needed, anew each time.

    Attributes:
        make: Produces it, in its shape and dtype.
        where: The file and the name it has there, for messages.
    """

    make: Callable[[], Tensor]
    where: str

    def to(self, dtype: torch.dtype) -> "LazyTensor":
        """The same tensor in another type."""
        if dtype == self.dtype:
            return self
        return LazyTensor(self.shape, dtype, lambda: self.make().to(dtype), self.where)

    def map(self, shape: tuple[int, ...], change: Callable[[Tensor], Tensor]) -> "LazyTensor":
        """What a function makes of it; the shape it will then have is told beforehand."""
        return LazyTensor(shape, self.dtype, lambda: change(self.make()), self.where)

    def tied_to(self, copy: "LazyTensor") -> "LazyTensor":
        """The same tensor, compared with a copy that has to be equal when it is made."""

        def check(tensor: Tensor) -> Tensor:
            if copy.shape != self.shape or not torch.equal(tensor, copy.make()):
                raise UserError(
                    f"{copy.where}: differs from the embedding, to which the config ties it",
                    "if the two are meant to differ, set tie_word_embeddings to false in "
                    "config.json; if not, files of two checkpoints may have been mixed",
                )
            return tensor

        return self.map(self.shape, check)


def read_bytes(file: Path, offset: int, num_bytes: int) -> Tensor:
    """Reads a part of a file into a new tensor of bytes, without mapping the file.

    A mapping would count every page that was touched as memory of this process.

    Raises:
        UserError: The file cannot be read, or ends before the part does.
    """
    content = torch.empty(num_bytes, dtype=torch.uint8)
    view = as_bytes(content)
    try:
        with file.open("rb", buffering=0) as stream:
            stream.seek(offset)
            done = 0
            while done < num_bytes and (count := stream.readinto(view[done:])):
                done += count
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    if done < num_bytes:
        raise UserError(
            f"{file}: ends {num_bytes - done} bytes too early",
            "the file is cut short: copy or download it again",
        )
    return content


def as_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, without a copy where it is contiguous."""
    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def unreadable(file: Path, kind: str, error: Exception) -> UserError:
    """What is wrong with a weight file that its library refused."""
    if not file.is_file():
        return UserError(f"{file}: no such file")
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


_BITS: dict[torch.dtype, tuple[torch.dtype, int]] = {
    torch.float32: (torch.int32, 0x7F800000),
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
}
"""By float type: the integer of its width, and where its exponent is."""


_CHUNK = 1 << 18
"""Elements that are looked at together: their exponents stay in the processor's cache."""


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is infinite or NaN: none has an exponent of all ones.

    Several times as fast as `isfinite().all()`, since nothing is computed in floating point.
    """
    integer, exponent = _BITS[tensor.dtype]
    chunks = tensor.contiguous().view(-1).view(integer).split(_CHUNK)
    return not tensor.numel() or all(
        int(chunk.bitwise_and(exponent).amax()) != exponent for chunk in chunks
    )


def check_finite(tensor: Tensor, where: str) -> None:
    """Refuses weights that are broken.

    Raises:
        UserError: An element is infinite or NaN.
    """
    if not is_finite(tensor):
        count = int((~torch.isfinite(tensor)).sum())
        raise UserError(
            f"{where}: {count} of {tensor.numel()} values are infinite or NaN",
            "the weights are damaged, or the training they come from diverged: use an older "
            "checkpoint, or copy the file again",
        )
