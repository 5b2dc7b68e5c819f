"""A tokenizer, a process that judges by rules, and a job of one process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from alignctl.data.tokenizer import Tokenizer
from alignctl.on_policy.samples import Samples
from alignctl.rewards.workers import RuleWorkers
from tests.on_policy import scripted


@pytest.fixture(scope="package")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return scripted.tokenizer_in(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="package")
def judges() -> Iterator[RuleWorkers]:
    with RuleWorkers(1) as workers:
        yield workers


@pytest.fixture
def samples(tokenizer: Tokenizer) -> Samples:
    """Two answers to each of two sums: right; wrong; right, but cut; none that can be read."""
    return scripted.samples(
        tokenizer,
        (0, 1, "#### 2."),
        (0, 1, "#### 3."),
        (1, 4, "#### 5"),
        (1, 4, "nothing at all."),
    )


@pytest.fixture
def job(tmp_path: Path) -> Iterator[None]:
    """This process is the only rank."""
    where = f"file://{tmp_path / 'store'}"
    dist.init_process_group("gloo", init_method=where, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "reward").mkdir()
    return tmp_path
