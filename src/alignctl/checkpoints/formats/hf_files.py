"""The weight files of a Hugging Face folder: which of them are read, and what is in them."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from alignctl.checkpoints.auxiliary_files import explain_dangling, read_json
from alignctl.checkpoints.formats import safetensors_file
from alignctl.checkpoints.pickles import torch_file
from alignctl.checkpoints.tensors.lazy import LazyTensor
from alignctl.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_STARTS = (SINGLE, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
"""What a folder's weights are found by. Where there are several, the first one is read, as
transformers 5.19 does (`_get_resolved_checkpoint_files`)."""

_WEIGHTS = re.compile(
    r"(model|pytorch_model|consolidated|tf_model|flax_model|adapter_model)([-._].*)?"
    r"\.(safetensors|bin|pt|pth|h5|msgpack)(\.index\.json)?|.*\.gguf",
    re.IGNORECASE,
)
"""Files that look like weights, for messages."""

ADAPTERS = "adapter_config.json"
"""PEFT's, which transformers looks for beside every model."""


def read(path: Path) -> tuple[dict[str, LazyTensor], str]:
    """Return the tensors of a folder by their stored names, and a line that says where they are.

    No weight is read yet.

    Raises:
        UserError: There are none, or adapters beside them; a file is missing, damaged, or does
            not hold what its index says.
    """
    if (path / ADAPTERS).is_file():
        raise UserError(
            f"{path}: {ADAPTERS} lies beside the weights, so transformers adds PEFT's adapters to "
            "them",
            "merge the adapters (merge_and_unload) and save the result, or remove their two files",
        )
    start = _start(path)
    parts = _index(path / start) if start.endswith(".json") else {start: None}
    tensors: dict[str, LazyTensor] = {}
    for name, listed in parts.items():
        tensors |= _file(path / name) if listed is None else _shard(path, start, name, listed)
    return tensors, _describe(path, start, parts)


def has_weights(path: Path) -> bool:
    """Tell whether a folder holds weights under a name that Hugging Face gives them.

    An index alone is none: converters to other formats copy every JSON file along.
    """
    starts = [name for name in _STARTS if (path / name).exists() or (path / name).is_symlink()]
    return any(not name.endswith(".json") for name in starts) or (
        bool(starts) and any(path.glob("*.safetensors")) | any(path.glob("*.bin"))
    )


def _start(path: Path) -> str:
    """Return the name of the file by which transformers finds the weights of a folder."""
    for name in _STARTS:
        if (path / name).is_file():
            return name
        if (path / name).is_symlink():
            raise explain_dangling(path / name)
    others = [name for name in _list_found(path) if name not in _STARTS]
    raise UserError(
        f"{path}: no weights beside config.json: none of {', '.join(_STARTS)}"
        + (f"; of another kind: {_list_names(others)}" if others else "")
    )


def _list_found(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir() if _WEIGHTS.fullmatch(file.name))


def _list_names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]} ({len(names)} files)"


def _describe(path: Path, start: str, parts: Collection[str]) -> str:
    """Describe in one line which files were read, and which others look like weights too."""
    read = start if start in parts else f"{start}: {_list_names(sorted(parts))}"
    others = [name for name in _list_found(path) if name not in parts and name != start]
    return read + (f"; not read: {_list_names(others)}" if others else "")


def _file(file: Path) -> dict[str, LazyTensor]:
    if file.suffix == ".safetensors":
        return safetensors_file.read(file)
    content = torch_file.read(file)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{file}: holds no weights by name, but a {type(content).__name__}")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, LazyTensor):
            raise UserError(
                f"{file}: {name!r} is no tensor: this is not a file of weights alone",
                "a training checkpoint is read from its own folder",
            )
    return content


def _index(index: Path) -> dict[str, set[str]]:
    """Return the names of the tensors that an index places in each file."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{index}: no `weight_map` in it")
    parts: dict[str, set[str]] = {}
    for name, place in places.items():
        if not isinstance(place, str) or Path(place).name != place:
            raise UserError(f"{index}: {place!r} lies outside the model folder")
        parts.setdefault(place, set()).add(name)
    return dict(sorted(parts.items()))


def _shard(path: Path, index: str, shard: str, listed: set[str]) -> dict[str, LazyTensor]:
    """Read one of several files; check that it holds what the index says, and no more."""
    if not (path / shard).is_file():
        if (path / shard).is_symlink():
            raise explain_dangling(path / shard)
        raise UserError(
            f"{path / index}: shard {shard} is missing", "copy or download the missing file"
        )
    tensors = _file(path / shard)
    if gone := sorted(listed - set(tensors)):
        raise UserError(
            f"{path / shard}: tensor {gone[0]!r}, which {index} places here, is not in the file"
        )
    if extra := sorted(set(tensors) - listed):
        places = _index(path / index)
        where = next((f"in {part}" for part, names in places.items() if extra[0] in names), None)
        raise UserError(
            f"{path / shard}: holds tensor {extra[0]!r}, which {index} places {where or 'nowhere'}",
            "files of two models may have been mixed: copy or download the folder again",
        )
    return tensors
