"""MT-Bench results as a report shows them: models side by side, one row for each category."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignctl.errors import UserError
from alignctl.run_folder import read_object

FILE = "mt_bench.json"
"""What `alignctl eval mt-bench` writes into its output folder."""

CATEGORIES = (
    *("coding", "extraction", "humanities", "math"),
    *("reasoning", "roleplay", "stem", "writing"),
)
"""MT-Bench's own, in the order in which its tables have them."""


@dataclass(frozen=True)
class Judged:
    """One model's marks.

    Attributes:
        name: The model.
        scores: Category to mean mark, 1 to 10; NaN where there is none.
        average: Over all answers; NaN where there is none.
        interval: Its 95% bootstrap interval, if one was computed.
        failures: Answers for which the judge gave no mark that could be read.
    """

    name: str
    scores: dict[str, float]
    average: float
    interval: tuple[float, float] | None
    failures: int

    def score(self, category: str) -> float:
        """Return the mark in a category, NaN where there is none."""
        return self.scores.get(category, math.nan)


@dataclass
class Benchmark:
    """All models that were judged.

    Attributes:
        models: In the order in which they were found.
        judges: Who gave the marks, one line for each file.
    """

    models: list[Judged] = field(default_factory=list)
    judges: list[str] = field(default_factory=list)

    @property
    def categories(self) -> list[str]:
        """Categories that any model has: MT-Bench's in their order, then others by name."""
        found = {category for model in self.models for category in model.scores}
        return [c for c in CATEGORIES if c in found] + sorted(found - set(CATEGORIES))

    def best(self, category: str | None) -> float:
        """Find the highest mark in a category, or on average; NaN where there is none."""
        known = [
            score
            for model in self.models
            if math.isfinite(score := model.score(category) if category else model.average)
        ]
        return max(known, default=math.nan)


def read(files: Sequence[Path]) -> Benchmark:
    """Read results; if several files name the same model, add the folder to later names.

    Raises:
        UserError: A file is damaged, or holds something else.
    """
    benchmark = Benchmark()
    for file in files:
        value = read_object(file)
        models = value.get("models")
        if not isinstance(models, dict):
            raise UserError(f"{file}: this is no result of `alignctl eval mt-bench`: no 'models'")
        taken = {model.name for model in benchmark.models}
        for name, entry in models.items():
            if not isinstance(entry, dict):
                raise UserError(f"{file}: models.{name} should be an object")
            shown = f"{name} ({file.parent.name})" if name in taken else name
            benchmark.models.append(_read_judged(shown, entry))
        judge = value.get("judge")
        judge = judge.get("model", judge) if isinstance(judge, dict) else judge
        if judge is not None:
            benchmark.judges.append(f"{file.parent.name}: judged by {judge}")
    return benchmark


def _read_judged(name: str, entry: dict[str, Any]) -> Judged:
    categories = entry.get("categories")
    scores = categories if isinstance(categories, dict) else {}
    interval = entry.get("interval")
    failures = entry.get("failures")
    return Judged(
        name,
        {str(category).lower(): _number(score) for category, score in scores.items()},
        _number(entry.get("average")),
        (
            (_number(interval[0]), _number(interval[1]))
            if isinstance(interval, list) and len(interval) == 2
            else None
        ),
        failures if isinstance(failures, int) else 0,
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
