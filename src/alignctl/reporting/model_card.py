"""A model card: what a run's model was made from and how, as Markdown for its folder.

    base and stages     along --load, from run to run
    data                of each stage
    settings            those that decide the numbers
    curves              first, last and some measurements between
    evaluation          results of `alignctl eval` that name the run

Paths are cut to their last two parts, and what looks like a key is hidden.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignctl import __version__
from alignctl.errors import UserError
from alignctl.reporting.page import evaluations, tables
from alignctl.reporting.page.recorded_run import RecordedRun, Series, read
from alignctl.run_folder import RunFolder, run_at

NAME = "README.md"
MARK = f"<!-- written by alignctl {__version__}: edit as you like -->"
_SIGN = "<!-- written by alignctl"
_MOST_STAGES = 20
_MOST_POINTS = 8
_SETTINGS = (
    *("precision", "engine", "optimizer", "batch", "train", "loss", "lora", "experience", "score"),
    *("kl", "rollout", "advantages", "policy", "value", "extra_vocab_size"),
)
"""Parts of a configuration that say how a model was trained, where it has them."""

_CURVES = ("loss", "accuracy", "token_accuracy", "score", "reward", "kl", "length", "perplexity")
"""Measurements that a card shows, where a run has them."""


def find_run(model: Path) -> Path | None:
    """Return the run folder that a path is, or is a checkpoint of; None: it is neither."""
    model = run_at(model)
    for folder in (model, model.parent, model.parent.parent):
        if RunFolder(folder).config.is_file() and RunFolder(folder).command.is_file():
            return folder
    return None


def is_ours(file: Path) -> bool:
    """Tell whether a file is a card that this module wrote."""
    return file.is_file() and _SIGN in file.read_text("utf-8", "replace")


def render(model: Path, *, base: str | None, results: Sequence[Path], is_adapter: bool) -> str:
    """Write the card of a run's model.

    Args:
        model: The run folder, or a checkpoint in it.
        base: Name of the model that all began with; None: what the first run was given.
        results: Folders with results of `alignctl eval`.
        is_adapter: Whether adapters are written, not a whole model.
    """
    stages = [read(path, path.name) for path in _stages(model)]
    given = _short(stages[0].config.get("load"))
    title = base or given
    scores = stages[-1].stage == "reward"
    front = {
        "base_model": title,
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-classification" if scores else "text-generation",
        "license": "unknown # fill in, as the base model and the data allow",
        "tags": f"[alignctl, {', '.join(dict.fromkeys(run.stage for run in stages))}]",
    }
    lines = ["---", *(f"{key}: {value}" for key, value in front.items()), "---", MARK, ""]
    lines += [f"# {stages[-1].name}", "", _summary(title, stages), ""]
    for run in stages:
        lines += _describe(run)
    lines += _evaluation({run.name for run in stages[-1:]}, results)
    lines += ["## License", "", "To be filled in: what the base model and the data allow.", ""]
    return "\n".join(lines)


def _stages(model: Path) -> list[Path]:
    """Follow --load from run to run; the first one is at the front."""
    found: list[Path] = []
    run = find_run(model)
    while run is not None and run not in found and len(found) < _MOST_STAGES:
        found.insert(0, run)
        load = RunFolder(run).read_config().get("load")
        run = find_run(Path(load)) if isinstance(load, str) else None
    return found


def _summary(base: str, runs: Sequence[RecordedRun]) -> str:
    way = ", then ".join(f"`alignctl {run.stage}`" for run in runs)
    return f"{base}, trained by {way} (alignctl {__version__})."


def _describe(run: RecordedRun) -> list[str]:
    """Describe one stage: its data, what it measured, its settings."""
    data = run.config.get("data")
    train = data.get("train") or data.get("blend") if isinstance(data, dict) else None
    lines = [f"## {run.stage}: {run.name}", ""]
    lines += [f"- from: {_short(run.config.get('load'))}", f"- data: {_data(train)}"]
    lines += [f"- {run.unit}s: {run.last_step:,}"]
    found = map(_license, train if isinstance(train, dict) else [train])
    if licenses := dict.fromkeys(filter(None, found)):
        lines += [f"- license of the data, by their card: {', '.join(licenses)}"]
    lines += [""]
    for kind, series in (("held out", run.validation), ("training", run.train)):
        lines += _curves(kind, run.unit, series)
    settings = {key: run.config[key] for key in _SETTINGS if run.config.get(key) is not None}
    rows = [f"| `{row.name}` | {row.values[0]} |" for row in tables.table([settings])]
    return [*lines, "| setting | value |", "|---|---|", *rows, ""]


def _curves(kind: str, unit: str, series: dict[str, Series]) -> list[str]:
    """Tabulate some measurements of a run, the first and the last among them."""
    names = [name for name in _CURVES if name in series]
    if not names:
        return []
    known = {
        name: dict(zip(series[name].steps.tolist(), series[name].values.tolist(), strict=True))
        for name in names
    }
    steps = _some(sorted({step for each in known.values() for step in each}))
    head = f"| {unit}, {kind} | {' | '.join(names)} |"
    rows = [
        f"| {step} | {' | '.join(_cell(known[name].get(step)) for name in names)} |"
        for step in steps
    ]
    return [head, "|---" * (len(names) + 1) + "|", *rows, ""]


def _some(steps: list[int]) -> list[int]:
    """Choose steps at even distances, the first and the last among them."""
    if len(steps) <= _MOST_POINTS:
        return steps
    last = len(steps) - 1
    places = [round(n * last / (_MOST_POINTS - 1)) for n in range(_MOST_POINTS)]
    return [steps[place] for place in places]


def _cell(value: float | None) -> str:
    return tables.ABSENT if value is None else tables.number(value)


def _evaluation(names: set[str], results: Sequence[Path]) -> list[str]:
    """Tabulate what evaluations found of a model."""
    lines = ["## Evaluation", ""]
    for found in evaluations.read([path for path in results if evaluations.is_result(path)]):
        places = [place for place, name in enumerate(found.models) if name in names]
        for place in places:
            shares = [
                (f"{m.name} %", str(m.shares[place] or tables.ABSENT)) for m in found.measures
            ]
            others = [(row.name, row.values[place]) for row in found.others]
            lines += [f"{found.title}: {found.about}", "", "| measure | value |", "|---|---|"]
            lines += [*(f"| {name} | {value} |" for name, value in (*shares, *others)), ""]
    if len(lines) == 2:
        lines += [
            "None is on record: `alignctl eval` measures, and what is exported later shows it.",
            "",
        ]
    return lines


def _data(value: Any) -> str:
    """Name data as they were given: a path, or a blend of several with their weights."""
    if isinstance(value, dict):
        return ", ".join(f"{_short(key)} ({weight})" for key, weight in value.items())
    if isinstance(value, list):
        return ", ".join(_data(each) for each in value)
    return _short(value)


def _short(value: Any) -> str:
    """Cut a path to its last two parts: what is above them is of this machine alone."""
    return "/".join(Path(value).parts[-2:]) if isinstance(value, str) else "unknown"


def _license(data: Any) -> str | None:
    """Return the license that `alignctl prepare` has written down beside data."""
    if not isinstance(data, str):
        return None
    for folder in (Path(data), *Path(data).parents[:2]):
        file = folder / "manifest.json"
        if file.is_file():
            try:
                found = json.loads(file.read_text("utf-8")).get("license")
            except (ValueError, AttributeError) as error:
                raise UserError(f"{file}: no manifest of alignctl prepare: {error}") from error
            return found if isinstance(found, str) else None
    return None
