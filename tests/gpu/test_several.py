"""Two GPUs: layouts have the numbers of one device, and a rank that does not come is named."""

from pathlib import Path
from typing import Any

import pytest

from alignctl.config.sections import Parallel
from tests.gpu import jobs
from tests.gpu.conftest import skip_without

LAYOUTS = {
    "tp2": Parallel(tp=2, sequence_parallel=True),
    "pp2": Parallel(pp=2),
    "dp2": Parallel(distributed_optimizer=True),
}
EVERYWHERE = pytest.mark.parametrize(
    "place",
    [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)],
)
"""On a CPU `tests/parallel` has these layouts, and `tests/engines` the ranks that do not come."""


@EVERYWHERE
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_have_the_numbers_of_one_device(
    layout: str, place: str, models: Path, measured: Any
) -> None:
    skip_without(place, gpus=2)
    parts = {name: ["train", name, "fp32", "plain"] for name in jobs.FAMILIES}
    found = jobs.run(models, place, parts, LAYOUTS[layout], world=2)
    for name in jobs.FAMILIES:
        assert "error" not in found[name], found[name]["error"]
        expected = measured("cpu")[f"train {name} fp32 plain"]
        for key in ("loss", "grad_norm"):
            assert found[name][key] == pytest.approx(expected[key], rel=1e-4), (name, key)


@EVERYWHERE
def test_a_rank_that_does_not_come_is_named(place: str, models: Path) -> None:
    skip_without(place, gpus=2)
    found = jobs.run(models, place, {"silent": ["silent"]}, world=2)["silent"]
    assert "error" not in found, found["error"]
    assert found["message"].startswith("rank 1 did not come to the first collective")
