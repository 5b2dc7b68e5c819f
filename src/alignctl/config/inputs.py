"""Whether what a run is to read is there, asked before anything is started."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
from typing import Any

from alignctl.config import hub, places
from alignctl.config.presets.problems import refuse
from alignctl.config.run import TrainingConfig
from alignctl.errors import UserError
from alignctl.run_folder import checkpoint_at


def never(_: Any) -> bool:
    """Say of an input that a run can do without it."""
    return False


def always(_: Any) -> bool:
    """Say of an input that every run needs it."""
    return True


@dataclass(frozen=True)
class Input:
    """Something that a run reads, and the flag that names it.

    Attributes:
        key: Its dotted key in the configuration: a path, or datasets with their weights.
        flags: The flag, and older names of it; or the key itself where there is no flag.
        help: What `--help` says of the flag; empty where there is none.
        metavar: What `--help` calls its value: DIR, PATH, or N for a number.
        meaning: What is missing where it is; `{config...}` stands for a value.
        is_needed: Tells of a configuration whether there has to be one.
        is_dataset: Whether it names indexed datasets, which are no files by that name.
        places: Where it is by convention, the likeliest place first: see `places.find`.
        maker: Command that makes it there, without `--preset`.
    """

    key: str
    flags: tuple[str, ...]
    help: str = ""
    metavar: str = "DIR"
    meaning: str = ""
    is_needed: Callable[[Any], bool] = never
    is_dataset: bool = False
    places: tuple[str, ...] = ()
    maker: str = ""

    @property
    def flag(self) -> str:
        """Flag, as messages name it."""
        return self.flags[0]

    @property
    def is_rows(self) -> bool:
        """Whether it names rows, which may be a data set on the hub."""
        return self.key.startswith("data.") and not self.is_dataset

    def hub_names(self, config: TrainingConfig) -> dict[Path, hub.HubName]:
        """Find the data sets on the hub that a configuration names in the place of paths."""
        return hub.names_in(self.paths(config)) if self.is_rows else {}

    def paths(self, config: TrainingConfig) -> list[Path]:
        """List the paths that a configuration names."""
        value = attrgetter(self.key)(config)
        if isinstance(value, Mapping):
            return list(value)
        return [value] if isinstance(value, Path) else []

    def missing(self, config: TrainingConfig) -> list[str]:
        """Return a line if the input is needed and not named."""
        if self.paths(config) or not self.is_needed(config):
            return []
        line = f"{self.flag} is missing: {self.meaning.format(config=config)}"
        if not self.places:
            return [line]
        searched = places.describe_search(self.places, config.preset)
        maker = self.maker.format(preset=config.preset)
        return [f"{line}; {searched}: `{maker}` writes there"]

    def find(self, config: TrainingConfig) -> Path | None:
        """Find what a configuration needs and does not name, where it is by convention.

        What the run was told when it was started counts before that.

        Raises:
            UserError: It may be one of several things.
        """
        if self.paths(config) or not self.places or not self.is_needed(config):
            return None
        told = places.recorded(config.output, self.key)
        if isinstance(told, str):
            return Path(told)
        return places.find(self.places, config.preset, self.flag)


def require_inputs(
    inputs: Iterable[Input],
    config: TrainingConfig,
    *,
    are_here: bool = True,
    is_started: bool = False,
) -> None:
    """Refuse a run whose model or data is not named, not there or not readable.

    Data sets on the hub are left to who fetches them.

    Args:
        inputs: What its stage reads.
        config: The run.
        are_here: Whether it reads them on this machine; otherwise they only have to be named.
        is_started: Whether it has been started before: then it knows its models, and needs those
            no longer that it has taken something of its own from.

    Raises:
        UserError: With every missing input and its flag.
    """
    problems, hint = [], None
    for each in inputs:
        is_known = is_started and not each.key.startswith("data.")
        if are_here and not is_known and not each.is_dataset:
            on_hub = each.hub_names(config)
            paths = [path for path in each.paths(config) if path not in on_hub]
            problems += [
                f"{each.flag} {path} {what}{_tell_shape(each, path)}"
                for path in paths
                for what in _unreadable(checkpoint_at(path))
            ]
        if missing := each.missing(config):
            problems += missing
            hint = f"alignctl {config.stage} --help"
    if problems:
        raise refuse(problems, hint=hint)


def find_inputs(inputs: Iterable[Input], config: TrainingConfig) -> dict[Input, Path]:
    """Find what a run needs and its command line does not name, where it is by convention."""
    found = {each: each.find(config) for each in inputs}
    return {each: path for each, path in found.items() if path is not None}


def missing_inputs(inputs: Iterable[Input], config: TrainingConfig) -> list[str]:
    """List what a run would lack here, a line each.

    For runs that are only shown, and may be meant for another machine.
    """
    inputs = tuple(inputs)
    on_hub = {path: name for each in inputs for path, name in each.hub_names(config).items()}
    named = [
        (flag, path)
        for flag, path in paths_of(inputs, config)
        if not _is_dataset(path) and path not in on_hub
    ]
    fetched = [
        f"{path}: not found here, so it would be fetched from the Hugging Face hub first, into "
        f"{hub.store(config.output)}"
        for path in on_hub
    ]
    return [line for each in inputs for line in each.missing(config)] + not_here(named) + fetched


def paths_of(inputs: Iterable[Input], config: TrainingConfig) -> Iterator[tuple[str, Path]]:
    """Yield the flags and paths of all that a run is told to read."""
    for each in inputs:
        for path in each.paths(config):
            yield each.flag, path


def refuse_inside(flag: str, output: Path, inputs: Iterable[tuple[str, Path | None]]) -> None:
    """Refuse to write into a folder that is read: it would be read too, the next time.

    Raises:
        UserError: The output lies below one of the inputs.
    """
    target = output.resolve()
    for name, path in inputs:
        found = path and checkpoint_at(path)
        if found is not None and found.is_dir() and found.resolve() in target.parents:
            raise UserError(
                f"{flag} {output} lies in {name} {path}, which is read", "give a folder beside it"
            )


def not_here(paths: Iterable[tuple[str, Path | None]]) -> list[str]:
    """List, with its flag, each path that is named but is not on this machine."""
    return [
        f"{flag} {path}: not found here{_similar(path)}"
        for flag, path in paths
        if path is not None and not checkpoint_at(path).exists()
    ]


def _is_dataset(path: Path) -> bool:
    """Tell whether an indexed dataset of this name is there."""
    return path.with_name(f"{path.name}.idx").exists()


def _tell_shape(each: Input, path: Path) -> str:
    """Write a clause about names on the hub where a word may have been meant as one."""
    is_word = each.is_rows and len(path.parts) == 1 and not path.suffix and not path.exists()
    return "; a data set on the Hugging Face hub is named ORG/NAME" if is_word else ""


def _unreadable(path: Path) -> list[str]:
    if not path.exists():
        return [f"does not exist{_similar(path)}"]
    # A folder must be entered as well as listed.
    mode = os.R_OK | os.X_OK if path.is_dir() else os.R_OK
    return [] if os.access(path, mode) else ["cannot be read: permission denied"]


def _similar(path: Path) -> str:
    """Write a clause with the neighbour that has almost this name, or nothing."""
    try:
        names = [each.name for each in path.parent.iterdir()]
    except OSError:
        return ""
    near = get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""
