"""The rollouts' jobs, each run when the first of its cases is asked for."""

from collections.abc import Callable
from functools import cache

import pytest

from tests.rollouts import jobs
from tests.rollouts.cases import FAST, SLOW, Case
from tests.rollouts.jobs import Result


@pytest.fixture(scope="session")
def result(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Result]:
    """What a case found."""
    folder = jobs.make_models(tmp_path_factory.mktemp("rollouts"))

    @cache
    def of_job(world: int, is_fast: bool) -> dict[str, Result]:
        cases = FAST if is_fast else SLOW
        return jobs.run(folder, [case for case in cases if case.world == world])

    return lambda case: of_job(case.world, case in FAST)[case.name]
