"""What a run started from, as far as it needs it later.

Other runs go on beside this one, and a run removes its own older checkpoints. So nothing that is
needed later is looked for in a folder that may have gone or moved on by then:

    RUN/origin/folders.json     the exact folder of each model, by the key that named it
    RUN/origin/load/            config and tokenizer files, which go into every checkpoint
    RUN/origin/value.load/      those of rlhf's value model
    RUN/origin/tokenizer/       the tokenizer, where another one than the model's was chosen

Weights stay where they are; a checkpoint of another run is marked there as needed (`holds`).
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from alignctl import atomic
from alignctl.checkpoints import holds
from alignctl.checkpoints.auxiliary_files import copy_auxiliary_files
from alignctl.checkpoints.source import Source
from alignctl.config.run import RunConfig
from alignctl.errors import UserError
from alignctl.run_folder import RunFolder, read_object

C = TypeVar("C", bound=RunConfig)

_SAVED = ("load", "value.load")
"""Models that a run trains, and so writes checkpoints of."""


def _folders(folder: RunFolder) -> Path:
    return folder.origin / "folders.json"


def settled(config: C, folder: RunFolder) -> C:
    """Return a run's configuration with the folders it started from, if it has been started.

    `--load RUN` means the latest checkpoint of RUN, which is another one every time.

    Args:
        config: The configuration, as the user gave it.
        folder: The run folder; it may not exist yet.
    """
    if not _folders(folder).exists():
        return config
    change: dict[str, Any] = {}
    for key, path in read_object(_folders(folder)).items():
        section, _, name = key.rpartition(".")
        if section:
            old = getattr(config, section)
            change[section] = old.model_copy(update={name: Path(path)})
        else:
            change[key] = Path(path)
        if key == "reward_load":
            change["reward_load_iteration"] = None
    if (folder.origin / "tokenizer").is_dir():
        change["tokenizer"] = folder.origin / "tokenizer"
    return config.model_copy(update=change)


def hold(config: RunConfig, folder: RunFolder, models: Mapping[str, Source]) -> list[Path]:
    """Write down which folders a run starts from, and mark those that others could remove.

    Args:
        config: The configuration.
        folder: The run folder, which this process holds.
        models: The models as they were found, by their keys in the configuration.

    Returns:
        The checkpoints that could not be marked: their folders are not writable.

    Raises:
        UserError: A checkpoint was removed since it was found.
    """
    found = {key: model.path for key, model in models.items() if model.kind != "zero"}
    if folder.latest_step() and config.load is not None:
        found["load"] = config.load  # a run from before there was an origin: it has own weights
    missed = []
    needed = [model.adapted.base.path for model in models.values() if model.adapted]
    for path in filter(holds.is_rotated, [*found.values(), *needed]):
        try:
            holds.hold(path, folder)
        except FileNotFoundError as error:
            raise UserError(
                f"{path}: this checkpoint has just been removed by the run that it belongs to",
                "start again from its latest one, or raise its checkpoint.keep",
            ) from error
        except OSError:
            missed.append(path)
    if not _folders(folder).exists():
        folder.origin.mkdir(exist_ok=True)
        text = json.dumps({key: str(path) for key, path in found.items()}, indent=2)
        atomic.write_text(_folders(folder), text + "\n")
    return missed


def keep(config: RunConfig, folder: RunFolder, models: Mapping[str, Source]) -> None:
    """Copy the files that a run's own checkpoints will hold, unless that was done before.

    Args:
        config: The configuration, as the user gave it.
        folder: The run folder, which this process holds.
        models: The models as they were found, by their keys in the configuration.
    """
    if config.tokenizer is not None:
        target = folder.origin / "tokenizer"
        if not target.exists():
            with atomic.new_folder(target) as partial:
                copy_auxiliary_files(None, partial, tokenizer=config.tokenizer)
                _copy_config(config.tokenizer, partial)
    for key in _SAVED:
        if key in models and not (folder.origin / key).exists():
            with atomic.new_folder(folder.origin / key) as partial:
                source = models[key]
                copy_auxiliary_files(source.auxiliary, partial, config=source.hf_config)


def _copy_config(tokenizer: Path, target: Path) -> None:
    """Copy the config.json beside a tokenizer, which may be what names the special tokens."""
    config = (tokenizer.parent if tokenizer.is_file() else tokenizer) / "config.json"
    if config.is_file():
        (target / config.name).write_bytes(config.read_bytes())


def with_own_files(source: Source, folder: RunFolder, key: str = "load") -> Source:
    """Make a model take config and tokenizer files from the run folder, if they are there."""
    own = folder.origin / key
    return replace(source, auxiliary=own) if own.is_dir() else source
