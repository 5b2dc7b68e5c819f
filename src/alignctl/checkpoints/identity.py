"""Which weights these are: equal for copies of one model, different for any two models."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from alignctl.checkpoints import manifest
from alignctl.checkpoints.manifest import HF_FOLDER, FileRecord
from alignctl.checkpoints.source import Source

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".distcp")


def identity(source: Source) -> dict[str, object]:
    """Return JSON values that are equal for copies of one model and differ for any other.

    Checkpoints of ours have checksums already, which are compared with the files when the weights
    are loaded; the weight files of others are read once.

    Raises:
        UserError: A weight file cannot be read.
    """
    files = find_recorded_files(source)
    if not files:
        files = {name: manifest.record(source.path / name) for name in weight_files(source)}
    if source.manifest and source.manifest.adapted:
        base = source.manifest.adapted.base.files
        files |= {f"base/{name}": found for name, found in base.items()}
    return {
        "model": source.model.model_dump(mode="json"),
        "head": source.head,
        "weights": _digest(files),
    }


def recipe_of(source: Source, told: Mapping[str, object], tokenizer: Path | None) -> str:
    """Compute a hash that changes as soon as a conversion would read or do something else.

    Checkpoints of ours are told by their manifest, files of others by size and time of change, as
    make does: reading them would take as long as converting them.

    Args:
        source: What is read.
        told: The flags that change what is written, or how it is verified.
        tokenizer: Folder of another tokenizer, or a file in it.
    """
    stats = {} if source.manifest else {name: source.path / name for name in weight_files(source)}
    if tokenizer is not None and tokenizer.is_file():
        tokenizer = tokenizer.parent
    for what, folder in (("beside", source.auxiliary), ("tokenizer", tokenizer)):
        stats |= {f"{what}/{file.name}": file for file in folder.iterdir()} if folder else {}
    state = [
        source.manifest.own_digest() if source.manifest else None,
        source.model.model_dump(mode="json"),
        dict(told),
        sorted((name, _stamp(file)) for name, file in stats.items() if file.is_file()),
    ]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _stamp(file: Path) -> tuple[int, int]:
    about = file.stat()
    return about.st_size, about.st_mtime_ns


def find_recorded_files(source: Source) -> dict[str, FileRecord]:
    """Find the weight files of a model that we wrote, as its manifest has them; else none."""
    files = source.manifest.files if source.manifest else {}
    return {
        name: found
        for name, found in files.items()
        if name.endswith(_WEIGHTS) and not name.startswith(f"{HF_FOLDER}/")
    }


def weight_files(source: Source) -> list[str]:
    """List the weight files that are in a model's folder, by their paths in it.

    Of a Hugging Face folder those in it; Megatron's and DeepSpeed's lie in folders below.
    """
    folder = source.path
    is_hf = (folder / "config.json").is_file()
    files = folder.glob("*") if is_hf else folder.rglob("*")
    found = (file for file in files if file.suffix in _WEIGHTS and file.is_file())
    return sorted(str(file.relative_to(folder)) for file in found)


def _digest(files: Mapping[str, FileRecord]) -> str:
    text = "".join(
        f"{name} {found.xxh3 or found.sha256}\n" for name, found in sorted(files.items())
    )
    return hashlib.sha256(text.encode()).hexdigest()
