"""The index of Megatron-Core's distributed format, a pickle of PyTorch's, read without trust."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignctl.checkpoints import restricted_pickle
from alignctl.checkpoints.dtypes import DTYPES, DType
from alignctl.checkpoints.manifest import METADATA
from alignctl.checkpoints.restricted_pickle import Inert, named
from alignctl.errors import UserError


@dataclass(frozen=True)
class Chunk:
    """A part of a tensor, which is a file of `torch.save` within a file.

    Attributes:
        offsets: Where it begins in the tensor, by dimension.
        sizes: Its shape.
        file: Name of the file; None in an index that lacks it.
        start: Where it begins in the file.
        length: Bytes it takes there.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str | None
    start: int
    length: int


@dataclass(frozen=True)
class Entry:
    """A tensor; those of all layers are stacked.

    Attributes:
        shape: Of the whole.
        dtype: Its type.
        chunks: Its parts.
    """

    shape: tuple[int, ...]
    dtype: DType
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Blob:
    """What is no tensor, but a file of `torch.save` within a file.

    Attributes:
        file: Name of the file.
        start: Where it begins in the file.
        length: Bytes it takes there.
    """

    file: str
    start: int
    length: int


_METADATA = "torch.distributed.checkpoint.metadata"
_FILESYSTEM = "torch.distributed.checkpoint.filesystem"


@dataclass
class _Whole:
    state_dict_metadata: Any
    planner_data: Any = None
    storage_data: Any = None


@dataclass
class _Tensor:
    properties: Any
    size: Any
    chunks: Any


@dataclass
class _Chunk:
    offsets: Any
    sizes: Any


@dataclass
class _Properties:
    dtype: Any = None

    def __setstate__(self, state: Any) -> None:
        self.dtype = state[0]


@dataclass(unsafe_hash=True)
class _Key:
    fqn: Any
    offset: Any = None
    index: Any = None


@dataclass
class _Place:
    relative_path: Any
    offset: Any
    length: Any


_KNOWN: Mapping[str, Any] = {
    f"{_METADATA}.Metadata": _Whole,
    f"{_METADATA}.TensorStorageMetadata": _Tensor,
    f"{_METADATA}.ChunkStorageMetadata": _Chunk,
    f"{_METADATA}.TensorProperties": _Properties,
    f"{_METADATA}.MetadataIndex": _Key,
    f"{_METADATA}.BytesStorageMetadata": Inert,
    f"{_METADATA}.StorageMeta": Inert,
    f"{_METADATA}._MEM_FORMAT_ENCODING": Inert,
    f"{_FILESYSTEM}._StorageInfo": _Place,
    f"{_FILESYSTEM}._StoragePrefix": Inert,
    # Megatron-Core keeps the plans of all ranks in the index.
    **{
        f"torch.distributed.checkpoint.planner.{name}": Inert
        for name in ("SavePlan", "TensorWriteData", "WriteItem", "WriteItemType")
    },
    "torch.distributed._shard.sharded_tensor.metadata.TensorProperties": _Properties,
    "torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING": Inert,
    "torch.Size": tuple,
    "torch.device": Inert,
    "torch.serialization._get_layout": Inert,
    "pathlib.PosixPath": Inert,
    "collections.OrderedDict": dict,
    **{f"torch.{name}": dtype for name, dtype in DTYPES.items()},
}
"""All that an index may name: what is wanted of it, and what is harmless to import."""


def read(folder: Path) -> dict[str, Entry]:
    """Reads the tensors that an index lists, by their keys in it.

    Raises:
        UserError: It is missing, damaged, or would import something beyond its own classes.
    """
    path = folder / METADATA
    try:
        whole = restricted_pickle.loads(path.read_bytes(), _KNOWN)
        if not isinstance(whole, _Whole):
            raise TypeError(f"a {type(whole).__name__}")
        places = {
            (key.fqn, _key_offsets(key)): _place(key, place)
            for key, place in whole.storage_data.items()
        }
        entries = {
            key: _entry(key, entry, places)
            for key, entry in whole.state_dict_metadata.items()
            if isinstance(entry, _Tensor)
        }
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(
            f"{path}: not the index of a distributed checkpoint: {error}",
            "the file is damaged, or it was made to run code when loaded; it was not run",
        ) from error
    _check_places(path, places)
    return entries


def _key_offsets(key: Any) -> tuple[int, ...] | None:
    return None if key.offset is None else _sizes(key.offset)


def _place(key: Any, place: Any) -> Blob:
    if not isinstance(place, _Place):
        raise TypeError(f"{key.fqn} has no place")
    if not place.relative_path.isprintable():
        raise ValueError(f"{place.relative_path!r} is no file")
    start, length = _sizes((place.offset, place.length))
    return Blob(place.relative_path, start, length)


def _entry(
    key: Any, entry: _Tensor, places: Mapping[tuple[Any, tuple[int, ...] | None], Blob]
) -> Entry:
    if not isinstance(key, str):
        raise TypeError(f"{key!r} is no name")
    if not isinstance(entry.properties.dtype, DType):
        raise TypeError(f"{key} has no type")
    shape = _sizes(entry.size)
    chunks = []
    for chunk in entry.chunks:
        offsets, sizes = _sizes(chunk.offsets), _sizes(chunk.sizes)
        if any(
            offset + length > whole
            for offset, length, whole in zip(offsets, sizes, shape, strict=True)
        ):
            raise ValueError(f"{key} has a chunk outside of it")
        place = places.get((key, offsets))
        file, start, length = (place.file, place.start, place.length) if place else (None, 0, 0)
        chunks.append(Chunk(offsets, sizes, file, start, length))
    return Entry(shape, entry.properties.dtype, tuple(chunks))


def _check_places(path: Path, places: Mapping[tuple[Any, tuple[int, ...] | None], Blob]) -> None:
    """Two chunks at one place are a damaged index, which would give one tensor for another."""
    seen: dict[tuple[str, int], object] = {}
    for (key, offsets), place in places.items():
        other = seen.setdefault((place.file, place.start), (key, offsets))
        if other != (key, offsets):
            raise UserError(
                f"{path}: {key} and {other[0]} lie at the same place",  # type: ignore[index]
                "the index is damaged: copy the checkpoint again, or use an older one",
            )


def _sizes(numbers: Iterable[object]) -> tuple[int, ...]:
    sizes = tuple(numbers)
    if not all(isinstance(number, int) and number >= 0 for number in sizes):
        raise ValueError(f"{sizes} are no sizes")
    return sizes  # type: ignore[return-value]


def write(folder: Path, entries: Mapping[str, Entry], blobs: Mapping[str, Blob]) -> None:
    """Writes an index.

    Args:
        folder: The checkpoint.
        entries: Its tensors, by key.
        blobs: What else is in its files, by key.
    """
    size = named("torch", "Size")
    tensor, key_of, place_of = (
        named(_METADATA, "TensorStorageMetadata"),
        named(_METADATA, "MetadataIndex"),
        named(_FILESYSTEM, "_StorageInfo"),
    )
    contents: dict[str, object] = {}
    places: dict[object, object] = {}
    for key, entry in entries.items():
        chunks: list[object] = []
        for number, chunk in enumerate(entry.chunks):
            offsets = size(chunk.offsets)
            chunks.append(named(_METADATA, "ChunkStorageMetadata")(offsets, size(chunk.sizes)))
            place = place_of(chunk.file, chunk.start, chunk.length)
            places[key_of(key, offsets, number)] = place
        properties = named(_METADATA, "TensorProperties")(named("torch", entry.dtype.name))
        contents[key] = tensor(properties, size(entry.shape), chunks)
    for key, blob in blobs.items():
        contents[key] = named(_METADATA, "BytesStorageMetadata")()
        places[key_of(key)] = place_of(blob.file, blob.start, blob.length)
    whole = named(_METADATA, "Metadata")(contents, None, places)
    (folder / METADATA).write_bytes(restricted_pickle.dumps(whole))
