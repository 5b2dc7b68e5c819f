"""The rewards of runs that had several: which one moved, which one decided, which one failed."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from alignctl.reporting.page.recorded_run import RecordedRun, Series

_FAILED = re.compile(r"reward_(\w+)_failed\Z")
_ENDS = 10
"""First and last are means over so many parts of a run, so that no single step decides."""


@dataclass(frozen=True)
class Reward:
    """One reward of a run, as the table has it.

    Attributes:
        run: The place of the run among those reported.
        label: What it is called.
        first: Mean over the first tenth of the run.
        last: Mean over the last tenth.
        moved: Their difference in deviations between answers, signed; a dash where there is none.
        share: Of the variance of the answers' scores, over the whole run.
        failed: Answers without a score from it.
    """

    run: int
    label: str
    first: str
    last: str
    moved: str
    share: str
    failed: str


def tabulate(runs: Sequence[RecordedRun]) -> Iterator[Reward]:
    """Yield the rewards of all runs that had several, those first that moved most."""
    for number, run in enumerate(runs):
        labels = [found[1] for name in run.train if (found := _FAILED.match(name))]
        known = [label for label in labels if f"reward_{label}" in run.train]
        for label in sorted(known, key=lambda label: -abs(_moved(run, label))):
            yield _row(number, run, label)


def _row(number: int, run: RecordedRun, label: str) -> Reward:
    first, last = _find_ends(run.train[f"reward_{label}"])
    moved, share = _moved(run, label), run.train.get(f"reward_{label}_share")
    has_spread = f"reward_{label}_std" in run.train and np.isfinite(moved)
    failed = np.nansum(run.train[f"reward_{label}_failed"].values)
    return Reward(
        number,
        label,
        f"{first:.4g}",
        f"{last:.4g}",
        f"{moved:+.2f}" if has_spread else "-",
        "-" if share is None else f"{100 * np.nanmean(share.values):.0f} %",
        f"{failed:,.0f}",
    )


def _find_ends(series: Series) -> tuple[float, float]:
    """Compute the means over the first and the last tenth."""
    values = series.values[np.isfinite(series.values)]
    count = max(1, len(values) // _ENDS)
    return (float(values[:count].mean()), float(values[-count:].mean())) if len(values) else (0, 0)


def _moved(run: RecordedRun, label: str) -> float:
    """Compute how far a reward moved, in deviations between the answers of an episode."""
    first, last = _find_ends(run.train[f"reward_{label}"])
    spread = run.train.get(f"reward_{label}_std")
    deviation = 0.0 if spread is None else float(np.nanmean(spread.values))
    return (last - first) / deviation if deviation > 0 else 0.0
