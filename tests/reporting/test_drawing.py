import numpy as np
import pytest

from alignctl.reporting.page.charts import Chart, Line
from alignctl.reporting.page.drawing import draw
from alignctl.reporting.page.recorded_run import Series


@pytest.mark.parametrize("is_validation", [False, True])
@pytest.mark.parametrize(("count", "is_line"), [(1, False), (2, False), (3, True)])
def test_two_measurements_are_points_and_more_are_a_line(
    is_validation: bool, count: int, is_line: bool
) -> None:
    points = Series(np.arange(count), np.linspace(1.0, 2.0, count))
    line = Line(0, is_validation, points, None, np.array([], int))
    [drawn] = draw(Chart("loss", "Loss"), [line], unit="step").axes[0].lines
    assert (drawn.get_linestyle() != "None") == is_line
    assert (drawn.get_marker() == "o") == (is_validation or not is_line)
