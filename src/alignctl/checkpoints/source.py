"""What a path given to `--load` is, found without reading a weight."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alignctl.checkpoints import manifest
from alignctl.checkpoints.companions import read_json
from alignctl.checkpoints.manifest import HF_FOLDER, Manifest
from alignctl.config.sections import Model
from alignctl.errors import UserError
from alignctl.launch.run_folder import LATEST
from alignctl.models.families import model_from_hf


@dataclass(frozen=True)
class Source:
    """A model on disk.

    Attributes:
        kind: Hugging Face, or Megatron-Core's distributed format.
        path: The folder with the weights themselves.
        model: Its architecture, as its own files tell it.
        companions: Folder with config.json and tokenizer files.
        manifest: Of a Megatron checkpoint; None for Hugging Face.
        description: One line that says what was found.
    """

    kind: Literal["hf", "mcore"]
    path: Path
    model: Model
    companions: Path
    manifest: Manifest | None
    description: str


def find(path: Path, *, vocab_divisor: int = 128) -> Source:
    """Finds the model that a path means.

    Accepts a Hugging Face folder, one checkpoint (`.../iter_0000100`), a folder of checkpoints
    with `latest_checkpointed_iteration.txt`, or a run folder (its latest checkpoint).

    Raises:
        UserError: There is no such folder, or it is none of these, or it is incomplete.
    """
    if not path.exists():
        raise UserError(f"{path}: no such folder")
    if not path.is_dir():
        raise UserError(f"{path}: a folder was expected, this is a file")
    if (path / "checkpoints").is_dir():
        if not (path / "checkpoints" / LATEST).is_file():
            raise UserError(f"{path}: this run has no checkpoint yet")
        return find(path / "checkpoints", vocab_divisor=vocab_divisor)
    if (path / manifest.NAME).is_file():
        return _mcore(path)
    if (path / LATEST).is_file():
        return _mcore(_latest(path))
    if (path / "config.json").is_file():
        config = path / "config.json"
        model = model_from_hf(read_json(config), where=str(config), vocab_divisor=vocab_divisor)
        text = f"{path}: Hugging Face {model.family}, {model.num_layers} layers"
        return Source("hf", path, model, path, None, text)
    raise UserError(
        f"{path}: not a model: neither config.json (Hugging Face) nor {LATEST} or {manifest.NAME} "
        "(Megatron) is in it",
        _nearby(path),
    )


def _latest(path: Path) -> Path:
    """The checkpoint that a folder of checkpoints points to."""
    text = (path / LATEST).read_text(encoding="utf-8", errors="replace").strip()
    if text != "release" and not text.isdecimal():
        raise UserError(
            f"{path / LATEST}: {text[:40]!r} is neither an iteration nor `release`",
            "write the number of a folder iter_NNNNNNN beside it into the file",
        )
    folder = path / (text if text == "release" else f"iter_{int(text):07d}")
    if not folder.is_dir():
        raise UserError(
            f"{path / LATEST} names {folder.name}, which is not there",
            "put the folder back, or write the number of another one into the file",
        )
    return folder


def _mcore(path: Path) -> Source:
    found = manifest.read(path)
    text = (
        f"{path}: Megatron-Core {found.model.family}, {found.model.num_layers} layers, "
        f"{found.dtype}, iteration {found.iteration}"
    )
    return Source("mcore", path, found.model, path / HF_FOLDER, found, text)


def _nearby(path: Path) -> str | None:
    """A hint that names a model one folder below, where users often mean it."""
    for child in sorted(path.iterdir()):
        if child.is_dir() and any(
            (child / name).is_file() for name in ("config.json", LATEST, manifest.NAME)
        ):
            return f"did you mean {child}?"
    return None
