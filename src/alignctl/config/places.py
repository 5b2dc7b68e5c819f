"""Where things are by convention: what is taken for a flag that is left out.

    models/PRESET         Hugging Face folder        runs/PRESET-STAGE     run
    models/PRESET-mg      Megatron checkpoint        models/PRESET-STAGE   run, converted back
    data/SET/KIND         rows as `prepare` writes them; KIND: sft, reward, alignment or math

`alignctl.yaml` in the working folder names other folders.
"""

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from alignctl.config.presets.document import Origin, read_yaml
from alignctl.config.presets.problems import describe, refuse
from alignctl.config.sections import FilePath, Section
from alignctl.config.stages import NAMES
from alignctl.errors import UserError
from alignctl.run_folder import RunFolder

FILE = Path("alignctl.yaml")


class Places(Section):
    """The folders that hold what commands leave for each other, relative to the working folder."""

    models: FilePath = Path("models")
    """Models as downloaded or converted."""

    runs: FilePath = Path("runs")
    """Runs of stages, where no --output says otherwise."""

    data: FilePath = Path("data")
    """What `alignctl prepare` writes."""

    answers: FilePath = Path("answers")
    """What `alignctl generate` and `alignctl eval` write."""


def read_places() -> Places:
    """Read which folders there are.

    Raises:
        UserError: `alignctl.yaml` holds something else.
    """
    if not FILE.exists():
        return Places()
    document = read_yaml(FILE)
    try:
        return Places.model_validate(document.tree)
    except ValidationError as error:
        problems = describe(error, Places, document.origins, Origin(str(FILE)))
        raise refuse(problems, hint="it names folders: models, runs, data, answers") from error


def place(kind: str, name: str) -> Path:
    """Return the place of a thing.

    Args:
        kind: One of the folders.
        name: What it is called in there.
    """
    folder: Path = getattr(read_places(), kind)
    return folder / name


def stem(preset: str) -> str:
    """Return what things are called after a preset, which is a name or a file."""
    return Path(preset).stem


def find(patterns: Sequence[str], preset: str, flag: str) -> Path | None:
    """Find the first place where something is, the likeliest first.

    Args:
        patterns: Such as `runs/{preset}-sft`: a kind of folder, and a pattern of names in it. Of
            indexed datasets, which are several files, it is their folder that is found.
        preset: Name or path of the preset.
        flag: What names the thing on the command line, for the message.

    Raises:
        UserError: There are several, equally likely.
    """
    for pattern in patterns:
        found = sorted(set(_matches(pattern, preset)) - set(_unfinished(pattern, preset)))
        if len(found) > 1:
            raise UserError(
                f"{flag} is missing, and could be {' or '.join(map(str, found))}",
                f"say which: {flag} {found[0]}",
            )
        if found:
            return found[0]
    return None


def require(patterns: Sequence[str], preset: str, flag: str) -> Path:
    """Do as `find`, but refuse where nothing is.

    Raises:
        UserError: Nothing is at any of the places, or several things are.
    """
    found = find(patterns, preset, flag)
    if found is None:
        kind, name = _split(patterns[0], stem(preset))
        stage = name.removeprefix(f"{stem(preset)}-")
        makers = {"runs": f"alignctl {stage} --preset {preset}", "data": "alignctl prepare"}
        maker = makers.get(kind, "hf download")
        raise UserError(
            f"{flag} is missing: {describe_search(patterns, preset)}", f"{maker} writes there"
        )
    return found


def held_out(kind: str) -> tuple[str, ...]:
    """Return where rows are that no stage has learned from, of a kind that `prepare` writes."""
    return (f"data/{kind}/dev.jsonl", f"data/*/{kind}/dev.jsonl")


def require_policy(preset: str) -> Path:
    """Find the run that a preset's policy came out of last.

    Raises:
        UserError: None has ended.
    """
    stages = [stage for stage in NAMES if stage != "reward"]
    patterns = [f"runs/{{preset}}-{stage}" for stage in stages]
    runs = [RunFolder(path) for pattern in patterns for path in _matches(pattern, preset)]
    ended = [run for run in runs if run.config.exists() and run.result.exists()]
    if not ended:
        raise UserError(
            f"--load is missing: {describe_search(patterns, preset)}",
            f"alignctl sft --preset {preset} makes one",
        )
    return max(ended, key=lambda run: run.result.stat().st_mtime_ns).path


def exported(run: Path) -> Path:
    """Return the Hugging Face folder that a run was converted to, or the run itself."""
    folder = place("models", run.name)
    return folder if folder.exists() else run


def describe_search(patterns: Sequence[str], preset: str) -> str:
    """Say where something was looked for, and what is there but is not finished."""
    places = [str(place(*_split(pattern, stem(preset)))) for pattern in patterns]
    unfinished = [
        f"{path} is there, but not finished"
        for pattern in patterns
        for path in _unfinished(pattern, preset)
    ]
    return "; ".join([f"looked for {', '.join(places)}", *unfinished])


def _matches(pattern: str, preset: str) -> Iterator[Path]:
    kind, names = _split(pattern, glob.escape(stem(preset)))
    for path in place(kind, "").glob(names):
        yield path.parent if path.suffix == ".idx" else path


def _split(pattern: str, preset: str) -> tuple[str, str]:
    kind, _, names = pattern.partition("/")
    return kind, names.format(preset=preset)


def _unfinished(pattern: str, preset: str) -> Iterator[Path]:
    """Yield the runs at a pattern that have not ended."""
    if pattern.startswith("runs/"):
        for path in _matches(pattern, preset):
            if RunFolder(path).config.exists() and not RunFolder(path).result.exists():
                yield path


def recorded(output: Path, key: str) -> Any:
    """Return what a run was told when it was started, None where there is no such run.

    Args:
        output: Its folder.
        key: A dotted key of its configuration.
    """
    run = RunFolder(output)
    value: Any = run.read_config() if run.config.exists() else {}
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
