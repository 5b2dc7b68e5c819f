"""What lies beside an indexed dataset: its tokenizer, its counts, the checksums of its files.

Megatron's .idx says how long each document is and no more: token ids of another tokenizer would be
read without an error. `NAME.json` beside `NAME.bin` and `NAME.idx` says whose ids they are. It is
written last, so where it is missing, the other two are foreign or unfinished.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from alignctl import atomic
from alignctl.errors import UserError
from alignctl.user_files import opened, read_json, read_text, reading

if TYPE_CHECKING:
    from alignctl.data.tokenizer import Tokenizer

_SUFFIXES = (".bin", ".idx", ".json")
_CHUNK_BYTES = 1 << 20


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TokenizerIdentity(_Frozen):
    """Whose ids the tokens are."""

    name: str
    """Name of the tokenizer's folder; for messages only."""
    vocab_size: int
    """Highest token id plus one, added tokens included."""
    sha256: str
    """Hash of the vocabulary: of every token with its id."""

    @classmethod
    def of(cls, tokenizer: "Tokenizer") -> Self:
        """Return the identity of a tokenizer."""
        return cls(
            name=tokenizer.folder.resolve().name,
            vocab_size=tokenizer.vocab_size,
            sha256=vocabulary_hash(tokenizer.vocabulary),
        )


class FileRecord(_Frozen):
    """A file, as it was when it was read or written."""

    name: str
    """Its name; of a source, its path as it was given."""
    bytes: int
    """Its size."""
    sha256: str
    """Hash of its content."""


class CorpusManifest(_Frozen):
    """The content of `NAME.json`."""

    format: Literal[1] = 1
    """Version of this description."""
    tokenizer: TokenizerIdentity
    """Whose ids the tokens are."""
    bos: int | None
    """Token that starts each document; None where the tokenizer puts none."""
    eod: int | None
    """Token that ends each document; None where none was appended."""
    append_eod: bool
    """Whether each document ends with `eod`."""
    documents: int
    """Documents, each of which is one sequence of the index."""
    tokens: int
    """Tokens of all documents."""
    max_token_id: int
    """Highest token id that occurs."""
    dtype: Literal["uint16", "int32"]
    """Type of the tokens in the .bin."""
    files: tuple[FileRecord, FileRecord]
    """The .bin and the .idx."""
    source: tuple[FileRecord, ...]
    """The files of text, in the order in which their documents follow each other."""
    recipe: str = ""
    """Hash of all that decided the bytes: the same command knows by it that all is done."""

    @property
    def bytes(self) -> int:
        """Bytes of the .bin and the .idx."""
        return sum(file.bytes for file in self.files)


def vocabulary_hash(vocabulary: Mapping[str, int]) -> str:
    """Hash every token with its id; what moves no id, such as a chat template, does not count."""
    digest = hashlib.sha256()
    for token, number in sorted(vocabulary.items(), key=lambda entry: (entry[1], entry[0])):
        text = token.encode("utf-8", "surrogatepass")
        digest.update(f"{number} {len(text)} ".encode())
        digest.update(text)
    return digest.hexdigest()


def prefix_of(path: Path) -> Path:
    """Return the prefix NAME of a dataset, given that or any of its three files."""
    return path.with_suffix("") if path.suffix in _SUFFIXES else path


def name_beside(prefix: Path, suffix: str) -> Path:
    """Name a file of a dataset: the suffix is added, whatever dots are in the name."""
    return prefix.with_name(prefix.name + suffix)


def file_record(file: Path, name: str | None = None) -> FileRecord:
    """Read a file's size and checksum."""
    digest = hashlib.sha256()
    size = 0
    try:
        with opened(file) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error
    return FileRecord(name=name or str(file), bytes=size, sha256=digest.hexdigest())


def is_made(folder: Path, recipe: Mapping[str, Any]) -> bool:
    """Tell whether a folder holds all the rows that this makes, by its manifest and its files.

    Args:
        folder: The folder, with a `manifest.json`.
        recipe: What the manifest holds of all that decided the rows, as JSON values.
    """
    file = folder / "manifest.json"
    if not file.is_file():
        return False
    found = read_json(file)
    wanted = json.loads(json.dumps(recipe))
    if any(found.get(key) != value for key, value in wanted.items()):
        return False
    with reading(file):
        return all(
            file_record(folder / record["name"]).sha256 == record["sha256"]
            for record in found["files"]
        )


def write_manifest(prefix: Path, manifest: CorpusManifest) -> None:
    """Write `NAME.json`, whole or not at all."""
    atomic.write_text(name_beside(prefix, ".json"), manifest.model_dump_json(indent=2) + "\n")


def read_manifest(prefix: Path) -> CorpusManifest:
    """Read `NAME.json`, and compare the sizes of the two files with it.

    Args:
        prefix: NAME, without a suffix.

    Raises:
        UserError: A file is missing, is of another size, or the manifest cannot be read.
    """
    file = name_beside(prefix, ".json")
    if not file.exists():
        raise UserError(*_explain_missing(prefix))
    text = read_text(file)
    try:
        manifest = CorpusManifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(
            f"{file}: not the manifest of an indexed dataset: {where}: {first['msg']}",
            "write it with: alignctl prepare tokenize",
        ) from error
    for suffix, record in zip((".bin", ".idx"), manifest.files, strict=True):
        _check_size(name_beside(prefix, suffix), record)
    return manifest


def verify_files(prefix: Path, manifest: CorpusManifest) -> None:
    """Compare the checksums of .bin and .idx with the manifest; both files are read whole."""
    for suffix, record in zip((".bin", ".idx"), manifest.files, strict=True):
        file = name_beside(prefix, suffix)
        if file_record(file).sha256 != record.sha256:
            raise UserError(
                f"{file}: the content is not what {name_beside(prefix, '.json').name} says: it was "
                "changed or damaged",
                "copy it again, or write it again with: alignctl prepare tokenize",
            )


def check_tokenizer(prefix: Path, manifest: CorpusManifest, identity: TokenizerIdentity) -> None:
    """Refuse a dataset whose ids are those of another tokenizer.

    Args:
        prefix: The dataset, for the message.
        manifest: Its manifest.
        identity: The tokenizer of the model.
    """
    theirs = manifest.tokenizer
    if theirs.sha256 == identity.sha256:
        return
    raise UserError(
        f"{prefix}: tokenised with {theirs.name} ({theirs.vocab_size:,} tokens), which is not the "
        f"tokenizer of the model, {identity.name} ({identity.vocab_size:,} tokens)",
        "tokenise it again: alignctl prepare tokenize --tokenizer DIR_OF_THE_MODEL",
    )


def _explain_missing(prefix: Path) -> tuple[str, str]:
    there = [suffix for suffix in (".bin", ".idx") if name_beside(prefix, suffix).is_file()]
    if there:
        return (
            f"{prefix}: {' and '.join(there)} without {prefix.name}.json, which says whose token "
            "ids they are",
            "write it with: alignctl prepare tokenize",
        )
    near = sorted(file.stem for file in prefix.parent.glob("*.idx"))
    names = f"; in that folder: {', '.join(near[:5])}" if near else ""
    return (
        f"{prefix}: no indexed dataset of this prefix (no {prefix.name}.json){names}",
        "give the path without .bin or .idx; alignctl prepare tokenize writes one",
    )


def _check_size(file: Path, record: FileRecord) -> None:
    if not file.is_file():
        raise UserError(f"{file}: missing, though {file.stem}.json is there", "copy it too")
    size = file.stat().st_size
    if size != record.bytes:
        raise UserError(
            f"{file}: {size:,} bytes, where {file.stem}.json says {record.bytes:,}",
            "copy it again, or write it again with: alignctl prepare tokenize",
        )
