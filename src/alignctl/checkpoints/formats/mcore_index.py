"""The index of Megatron-Core's distributed format, a pickle of PyTorch's, read without trust."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignctl.checkpoints.manifest import METADATA
from alignctl.checkpoints.pickles import restricted_pickle
from alignctl.checkpoints.pickles.restricted_pickle import Inert, make_global, sizes
from alignctl.checkpoints.tensors.dtypes import DTYPES, DType
from alignctl.errors import UserError
from alignctl.user_files import read_bytes, reading


@dataclass(frozen=True)
class Place:
    """Place of a file of `torch.save` within another file.

    Attributes:
        file: Name of the other one.
        start: Where it begins in there.
        length: Bytes it takes.
    """

    file: str
    start: int
    length: int


@dataclass(frozen=True)
class Chunk:
    """A part of a tensor.

    Attributes:
        offsets: Where it begins in the tensor, by dimension.
        shape: Its shape.
        place: Where it is stored; None in an index that lacks it.
    """

    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    place: Place | None


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
class Index:
    """All that an index lists.

    Attributes:
        tensors: By key.
        others: Where what is no tensor lies, by key.
    """

    tensors: Mapping[str, Entry]
    others: Mapping[str, Place]


_Key = tuple[str, tuple[int, ...] | None]

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
class _Index:
    fqn: Any
    offset: Any = None
    index: Any = None


@dataclass
class _Info:
    relative_path: Any
    offset: Any
    length: Any


_KNOWN: Mapping[str, Any] = {
    f"{_METADATA}.Metadata": _Whole,
    f"{_METADATA}.TensorStorageMetadata": _Tensor,
    f"{_METADATA}.ChunkStorageMetadata": _Chunk,
    f"{_METADATA}.TensorProperties": _Properties,
    f"{_METADATA}.MetadataIndex": _Index,
    f"{_METADATA}.BytesStorageMetadata": Inert,
    f"{_METADATA}.StorageMeta": Inert,
    f"{_METADATA}._MEM_FORMAT_ENCODING": Inert,
    f"{_FILESYSTEM}._StorageInfo": _Info,
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


def read(folder: Path) -> Mapping[str, Entry]:
    """Read the tensors that an index lists, by their keys in it; see `read_all`."""
    return read_all(folder).tensors


def read_all(folder: Path) -> Index:
    """Read an index.

    Raises:
        UserError: It is missing, damaged, or would import something beyond its own classes.
    """
    path = folder / METADATA
    with reading(path):
        content = read_bytes(path)
    try:
        whole = restricted_pickle.loads(content, _KNOWN)
        if not isinstance(whole, _Whole):
            raise TypeError(f"a {type(whole).__name__}")
        places = {_key(index): _place(index, info) for index, info in whole.storage_data.items()}
        entries = {
            key: _entry(key, entry, places)
            for key, entry in whole.state_dict_metadata.items()
            if isinstance(entry, _Tensor)
        }
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(
            f"{path}: not the index of a distributed checkpoint: {error}",
            "the file is damaged, or it was made to run code when loaded; it was not run",
        ) from error
    _check_places(path, places)
    # A tensor has an offset in its own, if only an empty one.
    others = {name: place for (name, offset), place in places.items() if offset is None}
    return Index(entries, others)


def _key(key: Any) -> _Key:
    """Return the key of a chunk: the name of its tensor, and where the chunk begins in it."""
    return key.fqn, None if key.offset is None else sizes(key.offset)


def _place(key: Any, info: Any) -> Place:
    if not isinstance(info, _Info):
        raise TypeError(f"{key.fqn} has no place")
    if not info.relative_path.isprintable():
        raise ValueError(f"{info.relative_path!r} is no file")
    start, length = sizes((info.offset, info.length))
    return Place(info.relative_path, start, length)


def _entry(key: Any, entry: _Tensor, places: Mapping[_Key, Place]) -> Entry:
    if not isinstance(key, str):
        raise TypeError(f"{key!r} is no name")
    if not isinstance(entry.properties.dtype, DType):
        raise TypeError(f"{key} has no type")
    whole, chunks = sizes(entry.size), []
    for chunk in entry.chunks:
        offsets, shape = sizes(chunk.offsets), sizes(chunk.sizes)
        inside = zip(offsets, shape, whole, strict=True)
        if any(offset + length > end for offset, length, end in inside):
            raise ValueError(f"{key} has a chunk outside of it")
        chunks.append(Chunk(offsets, shape, places.get((key, offsets))))
    return Entry(whole, entry.properties.dtype, tuple(chunks))


def _check_places(path: Path, places: Mapping[_Key, Place]) -> None:
    """Refuse an index with two chunks at one place: it would give one tensor for another."""
    seen: dict[tuple[str, int], _Key] = {}
    for key, place in places.items():
        other = seen.setdefault((place.file, place.start), key)
        if other != key:
            raise UserError(
                f"{path}: {key[0]} and {other[0]} lie at the same place",
                "the index is damaged: copy the checkpoint again, or use an older one",
            )


def write(folder: Path, entries: Mapping[str, Entry], others: Mapping[str, Place]) -> None:
    """Write an index.

    Args:
        folder: The checkpoint.
        entries: Its tensors, by key.
        others: Where what is no tensor lies, by key.
    """
    size, type_of = make_global("torch", "Size"), make_global(_METADATA, "TensorProperties")
    tensor, blob, part, key_of = (
        make_global(_METADATA, name)
        for name in (
            "TensorStorageMetadata",
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "MetadataIndex",
        )
    )
    contents: dict[str, object] = {}
    places: dict[object, object] = {}
    for key, entry in entries.items():
        chunks: list[object] = []
        for number, chunk in enumerate(entry.chunks):
            assert chunk.place is not None
            chunks.append(part(size(chunk.offsets), size(chunk.shape)))
            places[key_of(key, size(chunk.offsets), number)] = _info(chunk.place)
        dtype = type_of(make_global("torch", entry.dtype.name))
        contents[key] = tensor(dtype, size(entry.shape), chunks)
    for key, place in others.items():
        contents[key] = blob()
        places[key_of(key)] = _info(place)
    whole = make_global(_METADATA, "Metadata")(contents, None, places)
    (folder / METADATA).write_bytes(restricted_pickle.dumps(whole))


def _info(place: Place) -> object:
    return make_global(_FILESYSTEM, "_StorageInfo")(place.file, place.start, place.length)
