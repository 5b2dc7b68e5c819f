"""Settings of all tests."""

from pathlib import Path

import pytest
from hypothesis import settings

# Hypothesis fails examples that take 200 ms, as the first one may on a busy machine. No test here
# asserts a time.
settings.register_profile("alignctl", deadline=None)
settings.load_profile("alignctl")

HERE = Path(__file__).parent
WHOLE = {"parallel", "rollouts", "gpu", "evaluation"}
"""Folders whose tests share a job of minutes, which each worker of pytest would start anew."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several workers run tests, let one have all of a file, or of such a folder."""
    for item in items:
        path = item.path.relative_to(HERE)
        group = path.parts[0] if path.parts[0] in WHOLE else path.as_posix()
        item.add_marker(pytest.mark.xdist_group(group))
