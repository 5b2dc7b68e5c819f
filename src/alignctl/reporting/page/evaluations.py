"""Results of `alignctl eval` as a report shows them: shares with intervals, and other numbers."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from alignctl.errors import UserError
from alignctl.reporting.page.tables import ABSENT, Row, number, percent
from alignctl.run_folder import RunFolder, read_object

FILE = "result.json"
"""What `alignctl eval math | preference | lm-eval` writes into its output folder."""

BASELINE = "baseline"
"""What `eval preference` calls the model that the others are compared with."""

_Z = 1.96
"""95 % of a normal distribution are within so many standard deviations."""


@dataclass(frozen=True)
class Share:
    """A measured share of 1, and its 95 % interval, if there is one."""

    value: float
    interval: tuple[float, float] | None

    def __str__(self) -> str:
        return percent(self.value, self.interval)


@dataclass(frozen=True)
class Measure:
    """What was measured of all models: a share of each, None where there is none."""

    name: str
    shares: list[Share | None]

    @property
    def best(self) -> float:
        """Highest value; NaN where there is none."""
        return max((share.value for share in self.shares if share), default=math.nan)


@dataclass(frozen=True)
class Evaluation:
    """One call of `alignctl eval`.

    Attributes:
        title: Of which kind it is.
        about: What models were measured with.
        models: Their names.
        measures: Shares, which are drawn.
        others: Numbers of all kinds, as text.
        even: The share that is neither better nor worse than the baseline; None: there is none.
    """

    title: str
    about: str
    models: list[str]
    measures: list[Measure]
    others: list[Row]
    even: float | None = None


def is_result(folder: Path) -> bool:
    """Tell whether a folder holds a result of `alignctl eval`, and not that of a run.

    Raises:
        UserError: There is a result, but it cannot be read.
    """
    if RunFolder(folder).config.is_file() or not (folder / FILE).is_file():
        return False
    return "eval" in read_object(folder / FILE)


def read(folders: Sequence[Path]) -> list[Evaluation]:
    """Read results.

    Raises:
        UserError: One is damaged, or of a kind that is not known.
    """
    return [_evaluation(folder / FILE) for folder in folders]


def _evaluation(file: Path) -> Evaluation:
    result = read_object(file)
    models = result.get("models")
    if not isinstance(models, dict) or not all(isinstance(e, dict) for e in models.values()):
        raise UserError(f"{file}: this is no result of `alignctl eval`: no 'models'")
    match result["eval"]:
        case "lm-eval":
            about = f"lm-evaluation-harness {result.get('version')}"
            return Evaluation("Tasks", about, list(models), *_read_harness(models))
        case "math":
            return Evaluation("Math", _data(result), list(models), *_numbers(models))
        case "preference":
            about = f"{_data(result)}, scored by {result.get('reward_model')}"
            # The baseline against itself is even, and tells nothing.
            found = _numbers(models, without=BASELINE)
            return Evaluation(f"Preferred to the {BASELINE}", about, list(models), *found, even=0.5)
        case "pairs":
            title = "Reward models on preferences"
            return Evaluation(title, _data(result), list(models), *_numbers(models), even=0.5)
        case kind:
            raise UserError(f"{file}: a result of {kind!r}, which is no kind that is known")


def _data(result: Mapping[str, Any]) -> str:
    return f"on {result.get('data')}"


def _numbers(
    models: Mapping[str, dict[str, Any]], *, without: str | None = None
) -> tuple[list[Measure], list[Row]]:
    """Read shares, which have their intervals with them, and all other numbers.

    Args:
        models: Name to what was measured.
        without: A model whose shares are left out.
    """
    keys = dict.fromkeys(key for entry in models.values() for key in entry)
    measures, others = [], []
    for key in keys:
        found = [entry.get(key) for entry in models.values()]
        name = key.replace("_", " ")
        if any(isinstance(value, dict) for value in found):
            shares = [
                None if model == without else _share(value)
                for model, value in zip(models, found, strict=True)
            ]
            measures.append(Measure(name, shares))
        elif any(_is_number(value) for value in found):
            others.append(Row(name, [_text(value) for value in found]))
    return measures, others


def _share(value: object) -> Share | None:
    if not isinstance(value, dict) or not _is_number(share := value.get("value")):
        return None
    match value.get("interval"):
        case [low, high] if _is_number(low) and _is_number(high):
            return Share(share, (low, high))
    return Share(share, None)


def _read_harness(models: Mapping[str, dict[str, Any]]) -> tuple[list[Measure], list[Row]]:
    """Read a measure for each task and metric; what is no share, as perplexity, is a number."""
    measures, others = [], []
    for task, key in dict.fromkeys(_metrics(models)):
        metric, _, kind = key.partition(",")
        name = f"{task} {metric}" + ("" if kind == "none" else f" ({kind})")
        values, errors, is_share = [], [], True
        for entry in models.values():
            measured = _object(entry, "results", task)
            values.append(measured.get(key))
            errors.append(measured.get(f"{metric}_stderr,{kind}"))
            is_share &= _object(entry, "higher_is_better", task).get(metric) is True
        known = [value for value in values if _is_number(value)]
        if is_share and all(0 <= value <= 1 for value in known):
            found = zip(values, errors, strict=True)
            measures.append(Measure(name, [_around(value, error) for value, error in found]))
        else:
            others.append(Row(name, [_text(value) for value in values]))
    return measures, others


def _metrics(models: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield tasks and metrics, which the harness writes as `acc,none` and `acc_stderr,none`."""
    for entry in models.values():
        for task in _object(entry, "results"):
            for key, value in _object(entry, "results", task).items():
                metric, comma, _ = key.partition(",")
                if comma and not metric.endswith("_stderr") and _is_number(value):
                    yield task, key


def _around(value: object, error: object) -> Share | None:
    """Make a share with the interval that its standard error gives."""
    if not _is_number(value):
        return None
    if not _is_number(error):
        return Share(value, None)
    return Share(value, (max(value - _Z * error, 0.0), min(value + _Z * error, 1.0)))


def _object(value: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """Find the object below some keys; return an empty one where something else is."""
    found: Any = value
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: object) -> str:
    if not _is_number(value):
        return ABSENT
    return number(value)
