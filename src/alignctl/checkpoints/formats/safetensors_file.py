"""One safetensors file: read lazily, written as a stream.

The library checks a file's header when it is read. Weights are then read at the offsets that the
header names, and written behind a header of our own, since the library would map a file whole and
writes only what is in memory whole.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open

from alignctl.checkpoints.tensors.dtypes import DTYPES, Bits, view_bytes
from alignctl.checkpoints.tensors.lazy import LazyTensor, Spec, unreadable
from alignctl.checkpoints.tensors.mapped_file import read_bytes
from alignctl.errors import UserError
from alignctl.user_files import opened

_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""Of types, by those in headers."""

_ALIGNMENT = 8
"""Headers are filled up with spaces so that the weights begin at a multiple of this."""


def read(file: Path) -> dict[str, LazyTensor]:
    """Read the header of a file; return its tensors by name, of which none is read yet.

    Raises:
        UserError: It cannot be read, is damaged or cut short, or is not a safetensors file.
    """
    try:
        with opened(file) as stream:
            with safe_open(file, framework="np"):  # checks names, types, offsets, the file's size
                pass
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise unreadable(file, "safetensors", error) from error
    header.pop("__metadata__", None)
    return {name: _lazy(file, name, entry, 8 + length) for name, entry in header.items()}


def _lazy(file: Path, name: str, entry: Mapping[str, Any], start: int) -> LazyTensor:
    if entry["dtype"] not in _NAMES:
        raise UserError(f"{file}: {name} is of type {entry['dtype']}, which is not supported")
    dtype = DTYPES[_NAMES[entry["dtype"]]]
    shape: tuple[int, ...] = tuple(entry["shape"])
    begin, end = map(int, entry["data_offsets"])

    def bits() -> Bits:
        return read_bytes(file, start + begin, end - begin).view(dtype.bits).reshape(shape)

    return LazyTensor(shape, dtype, bits, f"{file}: {name}")


class Writer:
    """Writes the tensors of one file in the order in which they were announced."""

    def __init__(self, stream: BinaryIO, specs: Mapping[str, Spec]) -> None:
        """Write the header.

        Args:
            stream: An empty file; the caller closes it.
            specs: What will be written, in that order.
        """
        names = {name: theirs for theirs, name in _NAMES.items()}
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        position = 0
        for name, spec in specs.items():
            end = position + spec.num_bytes
            header[name] = {
                "dtype": names[spec.dtype.name],
                "shape": list(spec.shape),
                "data_offsets": [position, end],
            }
            position = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        self._stream = stream
        self._stream.write(len(text).to_bytes(8, "little") + text)

    def write(self, bits: Bits) -> None:
        """Write the next tensor."""
        self._stream.write(view_bytes(bits))
