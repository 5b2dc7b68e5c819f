"""Settings of all tests."""

from typing import Any

import pytest
from hypothesis import settings

# Hypothesis fails examples that take 200 ms, as the first one may on a busy machine. No test here
# asserts a time.
settings.register_profile("alignctl", deadline=None)
settings.load_profile("alignctl")

WHOLE = {"parallel", "rollouts", "gpu", "evaluation"}
"""Folders whose tests share a job of minutes, which each worker of pytest would start anew."""


def scope_of(test: str) -> str:
    """What a worker has all tests of: a file, or a folder whose tests share a job."""
    file = test.partition("::")[0]
    folder = file.split("/")[1]
    return folder if folder in WHOLE else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Chooses which worker runs what, where there are several."""
    from xdist.scheduler import LoadScopeScheduling  # which a machine with a GPU may lack

    scheduler: Any = LoadScopeScheduling(config, log)
    scheduler._split_scope = scope_of
    return scheduler
