"""Tests of a GPU, which also run on the CPU: there they show that they are right themselves.

`cuda` needs a GPU and belongs to `make test-gpu`; `cpu` is the same test with the CPU in its place,
of `make test-ci`.
"""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu import jobs

NUM_GPUS = torch.cuda.device_count()
PLACES = [pytest.param("cpu", marks=pytest.mark.ci), pytest.param("cuda", marks=pytest.mark.gpu)]


def skip_without(place: str, *libraries: str, gpus: int = 1) -> None:
    """Skips a test where its place lacks something, and says what."""
    if place == "cuda" and gpus > NUM_GPUS:
        pytest.skip(f"needs {gpus} GPU{'s' if gpus > 1 else ''}; torch sees {NUM_GPUS or 'none'}")
    for library in libraries:
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")


@pytest.fixture(scope="session", params=PLACES)
def place(request: pytest.FixtureRequest) -> str:
    """Where the tested side runs."""
    skip_without(request.param)
    return str(request.param)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny models."""
    return jobs.write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def measured(models: Path) -> Any:
    """What all parts measured in a place, in one job of one rank there, at the first request."""

    @cache
    def of_place(place: str) -> dict[str, Any]:
        return jobs.run(models, place, jobs.all_parts(place))

    return of_place


_wanted: set[str] = set()
_outcomes: dict[str, int] = {}


def pytest_itemcollected(item: pytest.Item) -> None:
    """Notes the tests that are to run on a GPU."""
    if item.get_closest_marker("gpu"):
        _wanted.add(item.nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.nodeid in _wanted and (report.when == "call" or report.skipped or report.failed):
        _outcomes[report.outcome] = _outcomes.get(report.outcome, 0) + 1


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says plainly how much of this has run on a GPU."""
    if not _outcomes:
        return
    done = _outcomes.get("passed", 0) + _outcomes.get("failed", 0)
    where = f"on {torch.cuda.get_device_name()}" if NUM_GPUS else "torch sees no GPU here"
    skipped = _outcomes.get("skipped", 0)
    terminalreporter.write_line(f"tests of the GPU: {done} run ({where}), {skipped} skipped")
