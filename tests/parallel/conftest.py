"""The jobs' models and results, made once when the first test asks for them."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.parallel import jobs
from tests.parallel.cases import Case
from tests.parallel.jobs import Result


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny models, their converted checkpoints and references."""
    from tests.parallel import reference

    return reference.make(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def result(models: Path) -> Callable[[Case], Result]:
    """What a case computed; its world's job runs at the first request."""

    @cache
    def of_world(world: int) -> dict[str, Result]:
        return jobs.run(models, world=world)

    return lambda case: of_world(case.world)[case.name]


@pytest.fixture(scope="session")
def family_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of the families that are like Llama."""
    from tests.parallel import reference

    return reference.make_families(tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="session")
def family_result(family_models: Path) -> Callable[[Case], Result]:
    """What a case of theirs computed."""

    @cache
    def of_world(world: int) -> dict[str, Result]:
        return jobs.run(family_models, world=world, suite="families")

    return lambda case: of_world(case.world)[case.name]
