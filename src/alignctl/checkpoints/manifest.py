"""`alignctl.json`: what a checkpoint of ours holds, and the checksums of its files.

It is written last, so a folder of Megatron's without it is not finished, or not ours.
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import xxhash
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from alignctl import user_files
from alignctl.checkpoints import auxiliary_files
from alignctl.checkpoints.tensors.direct_file import DirectFile
from alignctl.checkpoints.tensors.mapped_file import windows
from alignctl.config.sections import Head, Lora, Model, Role
from alignctl.errors import UserError

if TYPE_CHECKING:
    from _hashlib import _HashObject

    from typing_extensions import Buffer

NAME = "alignctl.json"
METADATA = ".metadata"
"""The index of Megatron-Core's distributed format, which tells such a folder from others."""
HF_FOLDER = "hf"
"""Sub-folder with the config and tokenizer files that go back to Hugging Face unchanged."""


class FileRecord(BaseModel):
    """One file of a checkpoint, with one of two checksums."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_bytes: int
    xxh3: str | None = None
    """XXH3 of 128 bits, which takes a tenth of the time of SHA-256. It is to find damage; whoever
    could change a file on purpose could change the manifest beside it, whatever is in there."""
    sha256: str | None = None
    """SHA-256, in the manifests of before."""

    @model_validator(mode="after")
    def _has_one(self) -> "FileRecord":
        if (self.xxh3 is None) == (self.sha256 is None):
            raise ValueError("a file has one checksum, xxh3 or sha256")
        return self

    @model_serializer(mode="wrap")
    def _drop_other(self, fields: SerializerFunctionWrapHandler) -> dict[str, object]:
        return {name: value for name, value in fields(self).items() if value is not None}

    def agrees_with(self, other: "FileRecord") -> bool:
        """Tell whether both can be of one file; if their checksums are of two kinds, by size."""
        is_comparable = (self.xxh3 is None) == (other.xxh3 is None)
        return self == other if is_comparable else self.num_bytes == other.num_bytes


class Base(BaseModel):
    """The model that adapters were made for: where it was, and what its weight files were."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    files: dict[str, FileRecord]


class Adapted(BaseModel):
    """Settings and base of adapters, as recorded in a checkpoint that holds adapters alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lora: Lora
    base: Base


class Manifest(BaseModel):
    """The description of one checkpoint folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    format: Literal["mcore", "legacy", "hf"] = "mcore"
    version: Literal[1] = 1
    iteration: int
    role: Role = "policy"
    head: Head = "lm"
    model: Model
    dtype: str
    """Of the weights: float32, bfloat16 or float16."""
    padded_vocab_size: int
    """Embedding rows as stored; those from `model.vocab_size` on are padding."""
    tp: int = 1
    """Tensor-parallel ranks that a legacy checkpoint is cut for, or that others are padded for."""
    pp: int = 1
    """Pipeline stages that a legacy checkpoint is cut for."""
    hf_prefix: str
    """Prefix of the Hugging Face tensor names of the model this came from; may be empty."""
    score_offset: float | None = None
    """Of a trained reward model: minus the mean score of the best answers of its training data. A
    reader adds it to every score, so that 0 is as good as those; the weights are without it."""
    adapted: Adapted | None = None
    """Of a checkpoint that holds adapters, and a score head, instead of all weights."""
    training: dict[str, int | bool] | None = None
    """Layout whose optimizer state is stored, or None where there are only weights."""
    made_from: str | None = None
    """Of a conversion: a hash of what it read and of what it was told; None in older ones."""
    files: dict[str, FileRecord] = {}
    digest: str | None = None
    """SHA-256 of this manifest without this entry; older ones have none."""

    def write(self, folder: Path, records: Mapping[str, FileRecord]) -> None:
        """Write the manifest.

        Args:
            folder: The checkpoint, otherwise complete.
            records: Its files, by their paths in it.
        """
        whole = self.model_copy(update={"files": dict(sorted(records.items()))})
        whole = whole.model_copy(update={"digest": whole.own_digest()})
        (folder / NAME).write_text(whole.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def own_digest(self) -> str:
        """Compute what `digest` must be."""
        rest = self.model_copy(update={"digest": None})
        # Manifests from before there was one of these keep their digest.
        later = ("score_offset", "adapted", "made_from")
        unknown = {name for name in later if getattr(self, name) is None}
        return hashlib.sha256(rest.model_dump_json(exclude=unknown).encode()).hexdigest()


def record(file: Path) -> FileRecord:
    """Record the size and the checksum of a file."""
    return FileRecord(num_bytes=file.stat().st_size, xxh3=_digest(file, xxhash.xxh3_128))


def is_unchanged(file: Path, expected: FileRecord) -> bool:
    """Tell whether a file's content is what was recorded; read it once, if its size is right.

    Raises:
        UserError: It cannot be read.
    """
    try:
        if file.stat().st_size != expected.num_bytes:
            return False
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    if expected.xxh3 is not None:
        return record(file) == expected
    found = _digest(file, hashlib.sha256)
    return FileRecord(num_bytes=file.stat().st_size, sha256=found) == expected


def _digest(file: Path, kind: "Callable[[], _HashObject]") -> str:
    digest = kind()
    for window in windows(file):
        digest.update(window.data)
    return digest.hexdigest()


def record_all(folder: Path, known: Mapping[str, FileRecord]) -> dict[str, FileRecord]:
    """Record all files below a folder; those that are known already are not read again."""
    names = (str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    return {name: known.get(name) or record(folder / name) for name in names}


class Recorder:
    """Takes the checksums of files while they are written, and syncs them in a thread of its own.

    Use it as a context manager.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._files: dict[Path, FileRecord] = {}
        self._pending: list[Future[None]] = []

    @contextmanager
    def open(self, file: Path) -> "Iterator[BinaryIO]":
        """Open a new file, to be written from its beginning to its end.

        Raises:
            OSError: It cannot be written.
        """
        try:
            with _Recorded(DirectFile(io.FileIO(file, "wb"))) as stream:
                yield stream
        except OSError as error:
            if error.filename is None:
                error.filename = str(file)
            raise
        self._pending.append(self._pool.submit(_sync, file))
        found = stream.checksum.hexdigest()
        self._files[file] = FileRecord(num_bytes=stream.num_bytes, xxh3=found)

    def records(self, folder: Path) -> dict[str, FileRecord]:
        """Return the complete files by their paths in the folder, once all of them are synced.

        Raises:
            OSError: One could not be synced.
        """
        for pending in self._pending:
            pending.result()
        return {str(file.relative_to(folder)): found for file, found in self._files.items()}

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


class _Recorded(io.BufferedWriter):
    """A file whose checksum is that of all that was written: nothing can be written again."""

    def __init__(self, raw: io.RawIOBase) -> None:
        super().__init__(raw)
        self.checksum = xxhash.xxh3_128()
        self.num_bytes = 0

    def write(self, content: "Buffer") -> int:
        whole = memoryview(content).cast("B")
        for start in range(0, len(whole), _PIECE):
            piece = whole[start : start + _PIECE]
            super().write(piece)
            self.checksum.update(piece)
        self.num_bytes += len(whole)
        return len(whole)

    def seekable(self) -> bool:
        return False

    def seek(self, *_: object) -> int:
        raise io.UnsupportedOperation("what was written has its checksum already")


_PIECE = 1 << 20
"""Bytes that are written at once. They are still in the processor's cache for the checksum; and
what goes through the system's cache is kept in large pages with many more, which it took several
times as long to find."""


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(folder: Path) -> Manifest:
    """Read a checkpoint's manifest and check that its files are there, with their sizes.

    Raises:
        UserError: No manifest, an unreadable one, or a file that is missing or truncated.
    """
    path = folder / NAME
    try:
        manifest = Manifest.model_validate_json(user_files.read_bytes(path))
    except OSError as error:
        raise UserError(
            f"{folder}: not an alignctl checkpoint: {NAME} cannot be read ({error.strerror})",
            "the folder is incomplete, or another program wrote it; let that one export the model "
            "to Hugging Face's format",
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{path}: {where}: {first['msg']}") from error
    for name in manifest.files:
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise UserError(f"{path}: {name} lies outside the checkpoint")
    if manifest.digest not in (None, manifest.own_digest()):
        raise UserError(
            f"{path}: its checksum differs from its content",
            "the file is damaged or was edited: copy the checkpoint again, or use an older one",
        )
    for name, expected in manifest.files.items():
        file = folder / name
        if _may_be_edited(name) and (file.is_file() or file.name != "config.json"):
            continue
        if not file.is_file():
            raise UserError(
                f"{folder}: {name} is missing, though {NAME} lists it",
                "copy the checkpoint again, or use an older one",
            )
        if (size := file.stat().st_size) != expected.num_bytes:
            raise UserError(
                f"{file}: {size} bytes, but {NAME} recorded {expected.num_bytes}",
                "the file is truncated or was changed: copy the checkpoint again, or use an older "
                "one",
            )
        if _is_auxiliary(name):  # it is read long before the weights, whose files are large
            _compare(folder, name, expected)
    return manifest


def find_changed_texts(folder: Path, manifest: Manifest) -> list[str]:
    """Find the files of a checkpoint that people may edit and that are not as we wrote them."""
    return [
        name
        for name, expected in manifest.files.items()
        if _may_be_edited(name)
        and not ((folder / name).is_file() and is_unchanged(folder / name, expected))
    ]


def _is_auxiliary(name: str) -> bool:
    """Tell whether a path in a checkpoint is that of a file of its Hugging Face model."""
    return auxiliary_files.is_auxiliary(name.removeprefix(f"{HF_FOLDER}/"))


def _may_be_edited(name: str) -> bool:
    return auxiliary_files.may_be_edited(name.removeprefix(f"{HF_FOLDER}/"))


def _compare(folder: Path, name: str, expected: FileRecord) -> None:
    if is_unchanged(folder / name, expected):
        return
    hint = "the file is damaged: copy the checkpoint again, or use an older one"
    if _is_auxiliary(name) and (folder / "config.json").is_file():
        hint = (
            "the file is damaged or was edited: copy the folder again; if the change was meant, "
            f"remove {NAME}, and it is any Hugging Face model"
        )
    raise UserError(f"{folder / name}: its checksum differs from the one in {NAME}", hint)


def verify_checksums(
    folder: Path, manifest: Manifest, *, share: int = 0, num_shares: int = 1
) -> None:
    """Compare the checksum of every file with the manifest, except files that may be edited.

    Args:
        folder: The checkpoint.
        manifest: Its manifest.
        share: Which share of the files is read, when several ranks divide them.
        num_shares: How many shares there are.

    Raises:
        UserError: A file's content is not what was written.
    """
    for name in sorted(manifest.files)[share::num_shares]:
        if not _may_be_edited(name):
            _compare(folder, name, manifest.files[name])


def check_layout(
    folder: Path, manifest: Manifest, layout: Mapping[str, int | bool], *, key: str | None = None
) -> None:
    """Check that a run of this layout can go on from a checkpoint as if it never stopped.

    Args:
        folder: The checkpoint.
        manifest: Its manifest.
        layout: What is known of the layout: tp, pp, dp ...
        key: What configures it, where that is not `parallel`.

    Raises:
        UserError: It holds no training state, or that of another layout.
    """
    if manifest.training is None:
        raise UserError(f"{folder}: holds weights only, no training state to resume from")
    changes = [
        f"{key}={manifest.training.get(key)} -> {value}"
        for key, value in layout.items()
        # An older checkpoint knows nothing of switches that came later: they were off.
        if manifest.training.get(key, False) != value
    ]
    if changes:
        named = f" ({key})" if key else ""
        raise UserError(
            f"{folder} was saved at another layout: {', '.join(changes)}; "
            "it cannot be resumed bit for bit",
            f"give the same layout{named}, or start a new run from its weights: --load RUN "
            "--output NEW",
        )
