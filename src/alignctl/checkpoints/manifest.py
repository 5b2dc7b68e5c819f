"""`alignctl.json`: what a Megatron checkpoint holds, and the checksums of its files.

It is written last, so a folder without it is not finished.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from alignctl.config.sections import Model
from alignctl.errors import UserError

NAME = "alignctl.json"
HF_FOLDER = "hf"
"""Sub-folder with the config and tokenizer files that go back to Hugging Face unchanged."""


class FileRecord(BaseModel):
    """One file of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_bytes: int
    sha256: str


class Manifest(BaseModel):
    """The description of one checkpoint folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    format: Literal["mcore"] = "mcore"
    version: Literal[1] = 1
    iteration: int
    role: Literal["policy"] = "policy"
    model: Model
    dtype: str
    """Of the weights: float32, bfloat16 or float16."""
    padded_vocab_size: int
    """Embedding rows as stored; those from `model.vocab_size` on are padding."""
    hf_prefix: str
    """Prefix of the Hugging Face tensor names of the model this came from; may be empty."""
    training: dict[str, int | bool] | None = None
    """Layout whose optimizer state is stored, or None where there are only weights."""
    files: dict[str, FileRecord] = {}

    def write(self, folder: Path, records: "dict[str, FileRecord] | None" = None) -> None:
        """Records every file of the folder with its checksum, then writes the manifest.

        Args:
            folder: The checkpoint, otherwise complete.
            records: Files that were read already, by name.
        """
        known = records or {}
        names = sorted(
            str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()
        )
        files = {name: known.get(name) or record(folder / name) for name in names}
        whole = self.model_copy(update={"files": files})
        (folder / NAME).write_text(whole.model_dump_json(indent=2) + "\n", encoding="utf-8")


def record(file: Path) -> FileRecord:
    """Size and checksum of a file."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileRecord(num_bytes=file.stat().st_size, sha256=digest)


def read(folder: Path) -> Manifest:
    """Reads a checkpoint's manifest and checks that its files are there, with their sizes.

    Raises:
        UserError: No manifest, an unreadable one, or a file that is missing or truncated.
    """
    path = folder / NAME
    try:
        manifest = Manifest.model_validate_json(path.read_text(encoding="utf-8"))
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
    for name, expected in manifest.files.items():
        file = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise UserError(f"{path}: {name} lies outside the checkpoint")
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
    return manifest


def verify_checksums(
    folder: Path, manifest: Manifest, *, share: int = 0, num_shares: int = 1
) -> None:
    """Reads every file once and compares its checksum with the manifest.

    Args:
        folder: The checkpoint.
        manifest: Its manifest.
        share: Which share of the files is read, when several ranks divide them.
        num_shares: How many shares there are.

    Raises:
        UserError: A file's content is not what was written.
    """
    for name in sorted(manifest.files)[share::num_shares]:
        try:
            found = record(folder / name)
        except OSError as error:
            raise UserError(f"{folder / name}: cannot be read: {error.strerror}") from error
        if found != manifest.files[name]:
            raise UserError(
                f"{folder / name}: its checksum differs from the one in {NAME}",
                "the file is damaged: copy the checkpoint again, or use an older one",
            )


def check_layout(folder: Path, manifest: Manifest, layout: Mapping[str, int | bool]) -> None:
    """Makes sure that a run of this layout can go on from a checkpoint as if it never stopped.

    Args:
        folder: The checkpoint.
        manifest: Its manifest.
        layout: What is known of the layout: tp, pp, dp ...

    Raises:
        UserError: It holds no training state, or that of another layout.
    """
    if manifest.training is None:
        raise UserError(f"{folder}: holds weights only, no training state to resume from")
    changes = [
        f"{key}={manifest.training.get(key)} -> {value}"
        for key, value in layout.items()
        if manifest.training.get(key) != value
    ]
    if changes:
        raise UserError(
            f"{folder} was saved at another layout: {', '.join(changes)}; "
            "it cannot be resumed bit for bit",
            "give the same layout, or start a new run from its weights: --load RUN --output NEW",
        )
