"""Which measurements a report draws, and the numbers behind each line: smoothed, thinned out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignctl.reporting.page.recorded_run import RecordedRun, Series

_POINTS = 600
"""Of a line: about as many as a chart is wide in pixels."""

_AUTOMATIC_WINDOWS = 25
"""Without a wish, a mean covers this part of a run: its shape stays, its noise goes."""


@dataclass(frozen=True)
class Chart:
    """One measurement, of all runs that have it."""

    metric: str
    """Its name in metrics.jsonl."""
    title: str
    about: str = ""
    """What it counts, and in which unit."""


MAIN = (
    Chart("loss", "Loss", "what is minimised; the on-policy stages' is not to be compared"),
    Chart("token_accuracy", "Token accuracy", "learned tokens that were the most likely ones"),
    Chart("accuracy", "Accuracy", "pairs ordered rightly, or answers that a rule found right"),
    Chart("margin", "Margin", "of the better answer over the worse"),
    Chart("score", "Reward", "mean score of the answers, from the reward model, the rule or both"),
    Chart("reward", "Reward less penalty", "what PPO maximises, per answer"),
    Chart("kl", "KL", "of the policy to its reference, nats per answer"),
    Chart("length", "Length", "tokens per answer"),
    Chart("finished", "Finished", "share of answers that end by themselves"),
    Chart("entropy", "Entropy", "of the policy, nats per token"),
    Chart("mismatch_mean_difference", "Log-prob mismatch", "|trainer - sampler|, nats per token"),
    Chart("grad_norm", "Gradient norm", "before clipping"),
    Chart("tokens_per_second", "Throughput", "tokens per second, over all ranks"),
    Chart("mfu", "MFU", "share of the GPUs' rate in bf16 that the model itself needs"),
    Chart("peak_memory_gib", "Memory", "largest so far of rank 0, GiB"),
    Chart("memory_gib_rollout", "Memory, sampling", "largest of rank 0, GiB"),
    Chart("memory_gib_training", "Memory, training", "largest of rank 0, GiB"),
)
"""What a reader looks for, in that order; the rest follows by name."""


@dataclass(frozen=True, eq=False)
class Line:
    """One run's part of a chart.

    Attributes:
        run: The place of the run among those reported, which decides its colour.
        is_validation: Whether it was measured on held-out rows.
        points: What was measured, thinned out.
        smooth: Moving means of it; None where smoothing would change nothing.
        bad_steps: Steps at which it was not a finite number.
    """

    run: int
    is_validation: bool
    points: Series
    smooth: Series | None
    bad_steps: NDArray[np.int64]


def choose(runs: Sequence[RecordedRun]) -> tuple[list[Chart], list[Chart]]:
    """Choose the charts for which some run has numbers: those of `MAIN`, and others by name."""
    names = {name for run in runs for name in (*run.train, *run.validation)}
    main = [chart for chart in MAIN if chart.metric in names]
    others = sorted(names - {chart.metric for chart in MAIN})
    return main, [Chart(name, name.replace("_", " ").capitalize()) for name in others]


def lines(chart: Chart, runs: Sequence[RecordedRun], window: int | None) -> Iterator[Line]:
    """Yield the lines of a chart.

    Args:
        chart: The measurement.
        runs: All runs of the report.
        window: Measurements that the strong line is the mean of; None: a 25th of each run.
    """
    for number, run in enumerate(runs):
        if chart.metric in run.train:
            yield _line(number, run.train[chart.metric], window, is_validation=False)
        if chart.metric in run.validation:
            yield _line(number, run.validation[chart.metric], 1, is_validation=True)


def _line(run: int, series: Series, window: int | None, *, is_validation: bool) -> Line:
    finite = np.isfinite(series.values)
    known = Series(series.steps, np.where(finite, series.values, np.nan))
    if window is None:
        window = max(1, len(series.steps) // _AUTOMATIC_WINDOWS)
    smooth = None
    if window > 1:
        means = np.where(finite, smooth_mean(known.values, window), np.nan)
        smooth = thin(Series(series.steps, means))
    return Line(run, is_validation, thin(known), smooth, series.steps[~finite])


def smooth_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Compute means of the values around each place: no lag, and fewer values at the ends.

    Args:
        values: [N]; NaN are left out of the means.
        window: Values in a mean; one more where that is even, so that it has a middle.

    Returns:
        [N]; NaN where no value is known.
    """
    before = window // 2
    is_known = np.isfinite(values)
    # Sums of a window are differences of running sums: less the mean, these lose fewer digits.
    middle = float(values[is_known].mean()) if is_known.any() else 0.0
    sums = np.concatenate([[0.0], np.cumsum(np.where(is_known, values - middle, 0.0))])
    counts = np.concatenate([[0], np.cumsum(is_known)])
    low = np.maximum(np.arange(len(values)) - before, 0)
    high = np.minimum(np.arange(len(values)) + before + 1, len(values))
    number = counts[high] - counts[low]
    with np.errstate(invalid="ignore"):
        return np.where(number > 0, middle + (sums[high] - sums[low]) / number, np.nan)


def thin(series: Series, limit: int = _POINTS) -> Series:
    """Keep about `limit` points: lowest and highest of each stretch, so no spike is lost.

    A stretch without a known value leaves one NaN, which is a gap in the line.
    """
    count = len(series.steps)
    if count <= limit:
        return series
    kept: list[int] = []
    for stretch in np.array_split(np.arange(count), limit // 2):
        values = series.values[stretch]
        if np.isnan(values).all():
            kept.append(int(stretch[0]))
        else:
            kept += sorted({int(stretch[np.nanargmin(values)]), int(stretch[np.nanargmax(values)])})
    # The ends are what a reader compares runs by.
    places = sorted({0, *kept, count - 1})
    return Series(series.steps[places], series.values[places])
