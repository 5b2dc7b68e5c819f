"""Data sets of the Hugging Face hub, by name: brought to a folder beside the runs, once.

    .cache/hub/openai/gsm8k:main@COMMIT/    train.jsonl.zst  test.jsonl.zst  manifest.json

The folder is named as the data set was asked for, at the commit that this meant: its content never
changes, a second run finds it, and a run that goes on reads the rows that it began with. No code of
a data set is run, and none of the libraries tells anybody that it was used.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from alignctl import atomic, console
from alignctl.config.hub import HubName, parse, store
from alignctl.config.inputs import Input
from alignctl.config.places import recorded
from alignctl.config.run import TrainingConfig
from alignctl.errors import TakenError, UserError
from alignctl.reporting.progress.alive import alive
from alignctl.sources.hub_rows import is_network, reason_of, write_rows
from alignctl.user_files import read_json

C = TypeVar("C", bound=TrainingConfig)

_SECONDS = 10.0
"""How long the hub may take to say what a name means."""

# Read by the libraries when they are imported: no statistics, no bars between our own lines.
_QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
}


def fetch_inputs(config: C, inputs: Iterable[Input]) -> C:
    """Fetch the data sets that a configuration names, and put their folders in the names' place.

    Args:
        config: The run. If it has been started before, it gets the folders that it had.
        inputs: What its stage reads.

    Raises:
        UserError: A data set is not there, may not be read, or holds no rows of text.
        RunError: The connection was lost, or the disk is full.
    """
    changes: dict[str, Any] = {}
    for each in inputs:
        names = each.hub_names(config)
        if not names:
            continue
        key = each.key.removeprefix("data.")
        folders = {}
        for path, name in names.items():
            settled = _settle(name, recorded(config.output, each.key))
            with alive(f"looking for {name} on the Hugging Face hub"):
                folders[path] = fetch(settled, store(config.output))
            console.say(f"{each.flag} {name}: {_describe(folders[path])}")
        value = getattr(config.data, key)
        if isinstance(value, Mapping):
            changes[key] = {folders.get(path, path): share for path, share in value.items()}
            if len(changes[key]) < len(value):
                given = ", ".join(map(str, value))
                raise UserError(
                    f"{each.flag}: two of {given} are the same data set", "give each one weight"
                )
        else:
            changes[key] = folders[value]
    if not changes:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update=changes)})


def fetch(name: HubName, folder: Path) -> Path:
    """Bring a data set into a folder below a folder, unless it is there; return it.

    Args:
        name: The data set.
        folder: The parent of all data sets.
    """
    if name.is_commit and (folder / str(name)).is_dir():
        return folder / str(name)
    try:
        found = _look_up(name)
    except _UnreachableError as error:
        return _find_fetched(name, folder, str(error))
    target = folder / str(replace(name, revision=found.commit))
    if not target.is_dir():
        try:
            with atomic.new_folder(target, console.say) as partial:
                counts = write_rows(name, found.commit, partial)
                what: dict[str, Any] = {"format": 1, "name": str(name), "commit": found.commit}
                what |= {"license": found.license, "rows": counts, "asked": []}
                _write_manifest(partial, what)
        except TakenError:
            console.say(f"{target}: fetched by another command")
    about = read_json(target / "manifest.json")
    if name.revision not in about["asked"]:
        _write_manifest(target, {**about, "asked": [*about["asked"], name.revision]})
    return target


@dataclass(frozen=True)
class _Found:
    """What the hub says that a name means."""

    commit: str
    license: str | None


class _UnreachableError(Exception):
    """The hub does not answer, or is not to be asked."""


def _look_up(name: HubName) -> _Found:
    """Ask the hub for the commit that a name means now.

    Raises:
        UserError: There is no such data set, it may not be read, or it is a program.
    """
    os.environ.update(_QUIET)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        if os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE"):
            raise _UnreachableError(f"{variable} is set")
    api = HfApi()
    try:
        info = api.dataset_info(name.repo, revision=name.revision, timeout=_SECONDS)
        if info.gated:
            api.auth_check(name.repo, repo_type="dataset")
    except RevisionNotFoundError as error:
        raise UserError(
            f"{name}: {name.repo} has no revision {name.revision}", "name a branch, tag or commit"
        ) from error
    except GatedRepoError as error:
        raise UserError(
            f"{name}: {name.repo} is gated: the hub gives it to those whom its owner has let in",
            f"ask for access at https://huggingface.co/datasets/{name.repo}, then log in "
            "(hf auth login) or set HF_TOKEN",
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{name}: no such file or folder here, and the Hugging Face hub has no data set "
            f"{name.repo} that you may read",
            "see the spelling; for a private one, log in (hf auth login) or set HF_TOKEN",
        ) from error
    except Exception as error:
        if is_network(error):
            raise _UnreachableError(reason_of(error)) from error
        # The library's own rules for names, or an answer that is none.
        raise UserError(f"{name}: no such file or folder here, and {reason_of(error)}") from error
    files = {file.rfilename for file in info.siblings or ()}
    if (script := f"{name.repo.partition('/')[2]}.py") in files:
        raise UserError(
            f"{name}: a program of its authors, {script}, makes its rows, and none is run here",
            f"the hub may have made files of them: {replace(name, revision='refs/convert/parquet')}"
            "; or run it elsewhere and give what save_to_disk wrote",
        )
    license = getattr(info.card_data, "license", None)
    return _Found(str(info.sha), license if isinstance(license, str) else None)


def _settle(name: HubName, before: Any) -> HubName:
    """Return the name at the commit that a run has had it at, if it has been started.

    Args:
        name: The name as it was given now.
        before: What the run's configuration has in its place: a path, or several with weights.
    """
    for path in [before] if isinstance(before, str) else before or ():
        folder = Path(path)
        then = parse(f"{folder.parent.name}/{folder.name}")
        if then is not None and then.is_commit and _is_of(folder, then, name):
            return then
    return name


def _is_of(folder: Path, there: HubName, name: HubName) -> bool:
    """Tell whether a folder is what a name meant when it was fetched."""
    if replace(there, revision=None) != replace(name, revision=None):
        return False
    revision = name.revision or ""
    if re.fullmatch(r"[0-9a-f]{7,40}", revision) and str(there.revision).startswith(revision):
        return True
    manifest = folder / "manifest.json"
    asked = read_json(manifest)["asked"] if manifest.is_file() else [None]
    return name.revision in asked


def _find_fetched(name: HubName, folder: Path, why: str) -> Path:
    """Find what was fetched for a name earlier, the newest of it.

    Raises:
        UserError: Nothing was.
    """
    found = [
        each
        for each in (folder / name.repo).parent.glob("*@*")
        if (there := parse(f"{each.parent.name}/{each.name}")) and _is_of(each, there, name)
    ]
    if not found:
        raise UserError(
            f"{name}: no such file or folder here, nor was it fetched into {folder} before, and "
            f"the Hugging Face hub cannot be asked for a data set of this name: {why}",
            "download it where there is a network, and give the folder: "
            f"hf download --repo-type dataset {name.repo} --local-dir DIR",
        )
    console.say(f"{name}: taken as it was fetched before: {why}")
    return max(found, key=lambda each: (each / "manifest.json").stat().st_mtime_ns)


def _describe(folder: Path) -> str:
    about = read_json(folder / "manifest.json")
    rows = ", ".join(f"{number:,} rows of {split}" for split, number in about["rows"].items())
    return f"{rows} at revision {about['commit'][:7]}, in {folder}"


def _write_manifest(folder: Path, about: dict[str, Any]) -> None:
    atomic.write_text(folder / "manifest.json", json.dumps(about, indent=2) + "\n")
