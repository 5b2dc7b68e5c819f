"""Whether what a run is to read is there, asked before anything is started."""

import os
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path

from alignctl.config.on_policy_run import OnPolicyConfig, RLHFConfig
from alignctl.config.pretrain import PretrainConfig
from alignctl.config.problems import refuse
from alignctl.config.run import TrainingConfig
from alignctl.errors import UserError


def require_inputs(
    config: TrainingConfig, *, are_here: bool = True, is_started: bool = False
) -> None:
    """Refuse a run whose model or data is not named, not there or not readable.

    Args:
        config: The run.
        are_here: Whether it reads them on this machine; otherwise they only have to be named.
        is_started: Whether it has been started before: then it knows its models, and needs those
            no longer that it has taken something of its own from.

    Raises:
        UserError: With every missing input and its flag.
    """
    problems, hint = [], None
    known = {"--load", "--tokenizer", "--reward-load", "value.load"} if is_started else set()
    for flag, meaning, path, is_required in _inputs(config):
        if path is not None and are_here and flag not in known:
            problems += [f"{flag} {path} {what}" for what in _unreadable(path)]
        elif path is None and is_required:
            problems.append(f"{flag} is missing: {meaning}")
            hint = f"alignctl {config.stage} --help"
    if problems:
        raise refuse(problems, hint=hint)


def missing_inputs(config: TrainingConfig) -> list[str]:
    """What a run would lack here, a line each.

    For runs that are only shown, and may be meant for another machine.
    """
    named = [(flag, path) for flag, path in paths_of(config) if not _is_dataset(path)]
    return [
        f"{flag} is missing: {meaning}"
        for flag, meaning, path, is_required in _inputs(config)
        if path is None and is_required
    ] + not_here(named)


def paths_of(config: TrainingConfig) -> list[tuple[str, Path]]:
    """The flags and paths of all that a run is told to read."""
    named = [(flag, path) for flag, _, path, _ in _inputs(config)]
    if isinstance(config, PretrainConfig):
        data = config.data
        named += [("--data", path) for path in (data.train, *(data.blend or ()))]
        named.append(("--validation-data", data.validation))
    return [(flag, path) for flag, path in named if path is not None]


def refuse_inside(flag: str, output: Path, inputs: Iterable[tuple[str, Path | None]]) -> None:
    """Refuse to write into a folder that is read: it would be read too, the next time.

    Raises:
        UserError: The output lies below one of the inputs.
    """
    target = output.resolve()
    for name, path in inputs:
        if path is not None and path.is_dir() and path.resolve() in target.parents:
            raise UserError(
                f"{flag} {output} lies in {name} {path}, which is read", "give a folder beside it"
            )


def not_here(paths: Iterable[tuple[str, Path | None]]) -> list[str]:
    """A line for each of some paths that is named, with its flag, but is not on this machine."""
    return [
        f"{flag} {path}: not found here{_similar(path)}"
        for flag, path in paths
        if path is not None and not path.exists()
    ]


def _is_dataset(path: Path) -> bool:
    """Whether an indexed dataset of this name is there."""
    return path.with_name(f"{path.name}.idx").exists()


def _inputs(config: TrainingConfig) -> Iterator[tuple[str, str, Path | None, bool]]:
    """Flag, meaning, path, and whether there has to be one, of all that a run reads."""
    yield "--load", "a model folder to start from", config.load, True
    yield from _data(config)
    yield "--tokenizer", "", config.tokenizer, False
    yield from _beside_the_policy(config)


def _data(config: TrainingConfig) -> Iterator[tuple[str, str, Path | None, bool]]:
    """The data; of indexed datasets only whether they are named: their names are no files."""
    if isinstance(config, PretrainConfig):
        if config.data.blend is None and config.data.train is None:
            yield "--data", "an indexed dataset, or a folder of them (or data.blend)", None, True
    else:
        yield "--data", "a file or folder of training rows", config.data.train, True
        yield "--validation-data", "", config.data.validation, False


def _beside_the_policy(config: TrainingConfig) -> Iterator[tuple[str, str, Path | None, bool]]:
    """The further models of a run that learns from what its policy writes."""
    if isinstance(config, OnPolicyConfig):
        meaning = (
            f"score.source {config.score.source} needs a reward model, such as a run of alignctl "
            "reward; score.source=sparse_only scores by the rules that rows name, without one"
        )
        yield "--reward-load", meaning, config.reward_load, config.needs_reward_model
    if isinstance(config, RLHFConfig):
        yield "value.load", "", config.value.load, False


def _unreadable(path: Path) -> list[str]:
    if not path.exists():
        return [f"does not exist{_similar(path)}"]
    # A folder must be entered as well as listed.
    mode = os.R_OK | os.X_OK if path.is_dir() else os.R_OK
    return [] if os.access(path, mode) else ["cannot be read: permission denied"]


def _similar(path: Path) -> str:
    """A clause with the neighbour that has almost this name, or nothing."""
    try:
        names = [each.name for each in path.parent.iterdir()]
    except OSError:
        return ""
    near = get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""
