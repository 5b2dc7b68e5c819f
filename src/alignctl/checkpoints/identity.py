"""Which weights these are: equal for copies of one model, different for any two models."""

import hashlib
from pathlib import Path

from alignctl.checkpoints import manifest
from alignctl.checkpoints.manifest import HF_FOLDER
from alignctl.checkpoints.source import Source

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".distcp")


def identity(source: Source) -> dict[str, object]:
    """What tells a model from every other one, as JSON values.

    Checkpoints of ours have checksums already, which are compared with the files when the weights
    are loaded; the weight files of others are read once.

    Raises:
        UserError: A weight file cannot be read.
    """
    return {
        "model": source.model.model_dump(mode="json"),
        "head": source.head,
        "weights": _digest(_recorded(source) or _read(source.path)),
    }


def _recorded(source: Source) -> dict[str, str]:
    files = source.manifest.files if source.manifest else {}
    return {
        name: found.sha256
        for name, found in files.items()
        if name.endswith(_WEIGHTS) and not name.startswith(f"{HF_FOLDER}/")
    }


def _read(folder: Path) -> dict[str, str]:
    """Of a Hugging Face folder the files in it; Megatron's and DeepSpeed's lie in folders below."""
    is_hf = (folder / "config.json").is_file()
    files = folder.glob("*") if is_hf else folder.rglob("*")
    weights = sorted(file for file in files if file.suffix in _WEIGHTS and file.is_file())
    return {str(file.relative_to(folder)): manifest.record(file).sha256 for file in weights}


def _digest(files: dict[str, str]) -> str:
    text = "".join(f"{name} {digest}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(text.encode()).hexdigest()
