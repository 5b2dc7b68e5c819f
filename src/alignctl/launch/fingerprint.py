"""What has to be the same on every node and for every rank of a job, as short texts to compare."""

import hashlib
import json
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from alignctl.launch.environment import package_versions
from alignctl.run_folder import RunFolder, checkpoint_at

_DIGITS = 16


class Config(Protocol):
    """What is asked of a configuration here: that it writes itself as JSON, and knows its kind."""

    def model_dump_json(self, *, indent: int | None = None) -> str:
        """Write the configuration as one JSON object."""

    def complete(self, recorded: dict[str, Any]) -> dict[str, Any]:
        """Give a configuration of its kind, as plain values, the defaults of keys that it lacks."""


def fingerprint(config: Config, folder: RunFolder) -> dict[str, str]:
    """Collect all that decides the numbers of a run, as this process sees it.

    Args:
        config: The run's configuration.
        folder: Its folder, which may hold a checkpoint to go on from.

    Returns:
        Name to text: code and versions, each setting, what is in the files of rewards, and which
        files the weights come from. The name of the run folder is left out: nodes may have mounted
        it at different places.
    """
    settings = json.loads(config.model_dump_json())
    settings.pop("output", None)
    versions = {name: version or "absent" for name, version in package_versions().items()}
    checkpoint = folder.latest_checkpoint()
    model = checkpoint or (Path(settings["load"]) if settings.get("load") else None)
    return {
        "alignctl's source": source_digest(),
        "python": platform.python_version(),
        **versions,
        **flatten(settings),
        **_reward_files(settings),
        "checkpoint": checkpoint.name if checkpoint else "none",
        "files of the model": "none" if model is None else files_digest(model),
    }


@cache
def source_digest() -> str:
    """Hash the code of alignctl that is running."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    # The links to stages and presets are followed by name: rglob does not follow them.
    for folder in (root, root / "stages", root / "presets"):
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".py", ".yaml") and path.is_file():
                digest.update(f"{path.relative_to(root)}\n".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:_DIGITS]


def _reward_files(settings: dict[str, Any]) -> dict[str, str]:
    """Hash the content of each Python file that scores answers, of which settings have the path."""
    functions = settings.get("score", {}).get("functions", [])
    files = [Path(each["file"]) for each in functions if each["file"] is not None]
    return {
        f"content of {file}": hashlib.sha256(file.read_bytes()).hexdigest()[:_DIGITS]
        if file.is_file()
        else "absent"
        for file in files
    }


def files_digest(model: Path) -> str:
    """Hash the names and sizes of a model's files; of a run folder, its latest checkpoint's.

    The content of weights is not read: that takes minutes, and is done when they are loaded.
    """
    model = checkpoint_at(model)
    folder = RunFolder(model).latest_checkpoint() or model
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{path.relative_to(folder)} {path.stat().st_size}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:_DIGITS]


def find_differences(
    ours: Mapping[str, str], theirs: Mapping[str, str]
) -> list[tuple[str, str, str]]:
    """List what differs: name, our text and theirs, "absent" where one side lacks the name."""
    pairs = [
        (name, ours.get(name, "absent"), theirs.get(name, "absent")) for name in {**ours, **theirs}
    ]
    return [pair for pair in pairs if pair[1] != pair[2]]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten a tree of settings to a mapping from dotted key to JSON."""
    flat: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = json.dumps(value, sort_keys=True)
    return flat
