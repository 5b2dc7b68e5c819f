"""From any format to any other: one stream of tensors, each in memory once.

source.tensors -> cast, checked -> padded or split -> the target's writer
                  (read ahead in a thread)            (checksums in a thread)
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from alignctl.checkpoints import adapted, manifest, padding
from alignctl.checkpoints.auxiliary_files import copy_auxiliary_files, read_json, write_config
from alignctl.checkpoints.formats import hf, legacy_writer, mcore
from alignctl.checkpoints.manifest import HF_FOLDER, Manifest, Recorder
from alignctl.checkpoints.source import Source
from alignctl.checkpoints.tensors.dtypes import Bits, DType, tensor_of
from alignctl.checkpoints.tensors.lazy import LazyTensor
from alignctl.config.sections import Model
from alignctl.errors import UserError
from alignctl.models.families import config_of_head, weight_map
from alignctl.models.weight_map import Vocabulary, Weight, pad_rows

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
Format = Literal["hf", "mcore", "legacy"]


@dataclass(frozen=True)
class Target:
    """Format, type and layout that are to be written.

    Attributes:
        format: Of the folder.
        dtype: Of the weights; None: as they are read.
        tp: Tensor-parallel ranks, for the padding and for the files of the legacy format.
        pp: Pipeline stages, for the files of the legacy format.
        tokenizer: Folder of the tokenizer to take along, if not the source's own.
        max_shard_bytes: Largest file of a Hugging Face folder.
        made_from: What `recipe_of` makes of the conversion; None: it is not written down.
    """

    format: Format
    dtype: DType | None = None
    tp: int = 1
    pp: int = 1
    tokenizer: Path | None = None
    max_shard_bytes: int = 5 * 10**9
    made_from: str | None = None


def convert(
    source: Source,
    folder: Path,
    target: Target,
    *,
    verify_source: bool = True,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> None:
    """Write a model in another format, layout or type.

    Args:
        source: Where it comes from.
        folder: An empty folder, which is left incomplete when something fails.
        target: What is wanted.
        verify_source: Whether a source of ours is compared with its checksums meanwhile.
        on_bytes: Called with the bytes that were written.

    Raises:
        UserError: The source is damaged, or its types cannot be brought together.
        OSError: The target cannot be written.
    """
    dtype = target.dtype or hf.common_dtype(source.path, source.tensors.values())
    tensors = {name: tensor.to(dtype) for name, tensor in source.tensors.items()}
    with ThreadPoolExecutor(1) as pool, Recorder() as recorder:
        checksums = pool.submit(_verify, source if verify_source else None)
        try:
            padded = _write(source, tensors, folder, target, recorder, on_bytes)
        except UserError:
            checksums.result()  # a damaged file is called that, wherever it was met first
            raise
        write_auxiliary_files(source, dtype, folder, target)
        checksums.result()
        Manifest(
            format=target.format,
            iteration=source.manifest.iteration if source.manifest else 0,
            role=source.role,
            head=source.head,
            score_offset=source.manifest.score_offset if source.manifest else None,
            model=source.model,
            dtype=dtype.name,
            padded_vocab_size=padded,
            tp=target.tp,
            pp=target.pp,
            hf_prefix=source.hf_prefix,
            made_from=target.made_from,
        ).write(folder, manifest.record_all(folder, recorder.records(folder)))


def _verify(source: Source | None) -> None:
    if source is not None:
        adapted.verify(source)


def _write(
    source: Source,
    tensors: Mapping[str, LazyTensor],
    folder: Path,
    target: Target,
    recorder: Recorder,
    on_bytes: Callable[[int], None],
) -> int:
    """Write the weights; return the rows of the embedding as stored."""
    rows = weight_map(source.model, source.head)
    if target.format == "hf":
        specs = hf.specs(source.model, source.head, source.hf_prefix, tensors)
        shards = hf.shards(specs, target.max_shard_bytes)
        parts = [specs[name] for shard in shards for name in shard]
        stream = _hf_stream(rows, tensors, parts, source.model, on_bytes)
        hf.write(folder, shards, stream, recorder=recorder)
        return source.model.vocab_size
    padded_rows = source.model.padded_vocab_size(target.tp)
    padded = {
        name: _pad(tensor, padded_rows) if isinstance(rows[name].layout, Vocabulary) else tensor
        for name, tensor in tensors.items()
    }
    if target.format == "mcore":
        mcore.write(
            folder,
            padded,
            _stream(padded, [*padded], on_bytes),
            num_layers=source.model.num_layers,
            recorder=recorder,
        )
    else:
        cut = legacy_writer.Cut(source.model, rows, target.tp, target.pp)
        stream = _stream(padded, cut.names(), on_bytes)
        legacy_writer.write(folder, cut, padded, stream, recorder=recorder)
    return padded_rows


def _pad(tensor: LazyTensor, rows: int) -> LazyTensor:
    return tensor.map((rows, *tensor.shape[1:]), lambda table: pad_rows(table, rows))


def _stream(
    tensors: Mapping[str, LazyTensor], names: Sequence[str], on_bytes: Callable[[int], None]
) -> Iterator[Bits]:
    """Yield the tensors of some names in that order, each checked."""
    for name, bits in zip(names, _ahead(partial(_made, tensors), names), strict=True):
        on_bytes(tensors[name].num_bytes)
        yield bits


def _hf_stream(
    rows: Mapping[str, Weight],
    tensors: Mapping[str, LazyTensor],
    parts: Sequence[hf.Part],
    model: Model,
    on_bytes: Callable[[int], None],
) -> Iterator[Bits]:
    """Yield Hugging Face tensors, each cut out of the full Megatron tensor it belongs to."""

    @lru_cache(maxsize=2)  # of one layer, what several names are cut from comes again soon
    def cut(row: str) -> list[Bits]:
        return rows[row].layout.split(_made(tensors, row), model)

    for part, pieces in zip(parts, _ahead(cut, [part.row for part in parts]), strict=True):
        on_bytes(part.num_bytes)
        yield pieces[part.number]


def hf_tensors(source: Source) -> "Iterator[tuple[str, Tensor]]":
    """Yield the Hugging Face tensors of a model by full name, in model order; write nothing.

    Raises:
        UserError: A weight is not finite, or a file is damaged.
    """
    rows = weight_map(source.model, source.head)
    tensors = source.tensors
    for row, full in zip(rows.values(), _ahead(partial(_made, tensors), rows), strict=True):
        for name, part in zip(row.hf, row.layout.split(full, source.model), strict=True):
            yield name, tensor_of(part, tensors[row.megatron].dtype)


def _made(tensors: Mapping[str, LazyTensor], name: str) -> Bits:
    return tensors[name].guard().bits()


def _ahead(make: Callable[[str], T], names: Iterable[str]) -> Iterator[T]:
    """Yield what is made of some names in that order; a thread makes the next two meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        pending: deque[Future[T]] = deque()
        for name in names:
            pending.append(pool.submit(make, name))
            if len(pending) > 2:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def write_auxiliary_files(source: Source, dtype: DType, folder: Path, target: Target) -> None:
    """Write config and tokenizer files.

    The config stays as it is, byte for byte, unless its type or its head would be wrong, or a
    reward model's padding.

    Args:
        source: Where they come from, and the head that is written.
        dtype: Of the weights that are written.
        folder: Where the weights are written.
        target: Its format says where beside the weights; it names another tokenizer or none.
    """
    beside = folder if target.format == "hf" else folder / HF_FOLDER
    copy_auxiliary_files(
        source.auxiliary, beside, tokenizer=target.tokenizer, config=source.hf_config
    )
    if target.format == "hf":
        old = read_json(beside / "config.json")
        if (new := _config(source, dtype, old)) != old:
            write_config(beside, new)
        if source.head == "linear":
            padding.settle(beside, source.model.vocab_size)


def _config(source: Source, dtype: DType, old: Mapping[str, Any]) -> dict[str, Any]:
    key = "torch_dtype" if "torch_dtype" in old and "dtype" not in old else "dtype"
    is_right = old.get(key, "float32") == dtype.name
    changes = {} if is_right else {key: dtype.name}
    return {**old, **changes, **config_of_head(source.model, source.head, old)}
