from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from alignctl.reporting.page.charts import Chart, choose, lines, smooth_mean, thin
from alignctl.reporting.page.recorded_run import RecordedRun, Series

numbers = st.lists(st.one_of(st.just(np.nan), st.floats(-1e6, 1e6)), min_size=1, max_size=200).map(
    np.array
)


def run(**train: list[float]) -> RecordedRun:
    series = {
        name: Series(np.arange(1, len(values) + 1), np.array(values, dtype=np.float64))
        for name, values in train.items()
    }
    return RecordedRun(Path("run"), "run", {}, train=series)


@given(numbers, st.integers(1, 50))
def test_a_moving_mean_is_the_mean_of_the_known_values_around(
    values: NDArray[np.float64], window: int
) -> None:
    """Computed again the slow way, place by place."""
    half = window // 2
    found = smooth_mean(values, window)
    for place in range(len(values)):
        around = values[max(0, place - half) : place + half + 1]
        known = around[np.isfinite(around)]
        expected = known.mean() if len(known) else np.nan
        np.testing.assert_allclose(found[place], expected, rtol=1e-9, atol=1e-6)


@given(numbers, st.integers(4, 20))
def test_thinning_keeps_both_ends_the_highest_and_the_lowest(
    values: NDArray[np.float64], limit: int
) -> None:
    series = Series(np.arange(len(values)), values)
    kept = thin(series, limit)
    assert len(kept.steps) <= max(limit + 2, len(values) if len(values) <= limit else 0)
    assert (np.diff(kept.steps) > 0).all()
    assert {kept.steps[0], kept.steps[-1]} == {0, len(values) - 1}
    np.testing.assert_equal(kept.values, values[kept.steps])
    if np.isfinite(values).any():
        assert np.nanmin(kept.values) == np.nanmin(values)
        assert np.nanmax(kept.values) == np.nanmax(values)


def test_a_hundred_thousand_steps_become_some_hundred_points() -> None:
    values = np.random.default_rng(0).normal(size=100_000)
    values[50_000] = 40.0
    [line] = lines(Chart("loss", "Loss"), [run(loss=values.tolist())], None)
    assert len(line.points.steps) < 700
    assert line.points.values.max() == 40.0
    assert line.smooth is not None
    assert len(line.smooth.steps) < 700
    assert np.abs(line.smooth.values).max() < 0.5


def test_short_runs_are_drawn_as_they_were_measured() -> None:
    """49 measurements: a 25th of them is one; of 50 it is two, and so three are averaged."""
    [short] = lines(Chart("loss", "Loss"), [run(loss=[1.0] * 49)], None)
    assert short.smooth is None
    [longer] = lines(Chart("loss", "Loss"), [run(loss=[0.0, 3.0] * 25)], None)
    assert longer.smooth is not None
    assert longer.smooth.values[:3].tolist() == [1.5, 1.0, 2.0]


def test_values_that_are_no_numbers_are_gaps_and_are_known_by_their_steps() -> None:
    [line] = lines(Chart("loss", "Loss"), [run(loss=[1.0, np.nan, np.inf, 3.0])], 3)
    assert line.bad_steps.tolist() == [2, 3]
    np.testing.assert_equal(line.points.values, [1.0, np.nan, np.nan, 3.0])
    assert line.smooth is not None
    np.testing.assert_equal(line.smooth.values, [1.0, np.nan, np.nan, 3.0])


def test_known_measurements_come_first_and_all_others_follow_by_name() -> None:
    main, others = choose([run(zebra=[1.0], loss=[1.0]), run(kl=[1.0], apple=[1.0])])
    assert [chart.metric for chart in main] == ["loss", "kl"]
    assert [chart.metric for chart in others] == ["apple", "zebra"]
    assert [line.run for line in lines(main[1], [run(loss=[1.0]), run(kl=[1.0])], None)] == [1]
