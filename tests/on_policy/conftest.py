"""A tokenizer, and a job of one process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from alignctl.data.tokenizer import Tokenizer
from tests.on_policy import scripted


@pytest.fixture(scope="package")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return scripted.tokenizer_in(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def job() -> Iterator[None]:
    """This process is the only rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "reward").mkdir()
    return tmp_path
