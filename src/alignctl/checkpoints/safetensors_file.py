"""One safetensors file: read lazily, written as a stream.

The library checks a file's header when it is read. Weights are then read at the offsets that the
header names, and written behind a header of our own, since the library would map a file whole and
writes only what is in memory whole.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from alignctl.checkpoints.lazy import LazyTensor, Spec, as_bytes, read_bytes, unreadable
from alignctl.errors import UserError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""By the names in headers."""

_ALIGNMENT = 8
"""Headers are filled up with spaces so that the weights begin at a multiple of this."""


def read(file: Path) -> dict[str, LazyTensor]:
    """The tensors of a file, by their names in it; no weight is read yet.

    Raises:
        UserError: It cannot be read, is damaged or cut short, or is not a safetensors file.
    """
    try:
        with safe_open(file, framework="pt"):  # checks names, types, offsets and the file's size
            pass
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise unreadable(file, "safetensors", error) from error
    header.pop("__metadata__", None)
    return {name: _lazy(file, name, entry, 8 + length) for name, entry in header.items()}


def _lazy(file: Path, name: str, entry: Mapping[str, Any], start: int) -> LazyTensor:
    if entry["dtype"] not in DTYPES:
        raise UserError(f"{file}: {name} is of type {entry['dtype']}, which is not supported")
    dtype = DTYPES[entry["dtype"]]
    shape: tuple[int, ...] = tuple(entry["shape"])
    begin, end = map(int, entry["data_offsets"])

    def make() -> Tensor:
        return read_bytes(file, start + begin, end - begin).view(dtype).reshape(shape)

    return LazyTensor(shape, dtype, make, f"{file}: {name}")


class Writer:
    """Writes the tensors of one file in the order in which they were announced."""

    def __init__(self, stream: BinaryIO, specs: Mapping[str, Spec]) -> None:
        """Writes the header.

        Args:
            stream: An empty file; the caller closes it.
            specs: What will be written, in that order.
        """
        names = {dtype: name for name, dtype in DTYPES.items()}
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        position = 0
        for name, spec in specs.items():
            end = position + spec.num_bytes
            header[name] = {
                "dtype": names[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [position, end],
            }
            position = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        self._stream = stream
        self._stream.write(len(text).to_bytes(8, "little") + text)

    def write(self, tensor: Tensor) -> None:
        """Writes the next tensor."""
        self._stream.write(as_bytes(tensor))
