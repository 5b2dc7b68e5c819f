"""The roll call over a real store; the ranks are threads, which need no process group."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from alignctl.engines import rendezvous
from alignctl.errors import AlignctlError, LostError, UserError

FACTS = {"alignctl's source": "abc", "optimizer.lr": "1e-05"}


def answers(size: int, *, missing: int | None = None, odd: int | None = None) -> list[object]:
    """What each rank that is there raised."""
    store = HashStore()
    store.set_timeout(timedelta(seconds=30))

    def come(rank: int) -> AlignctlError | None:
        fingerprint = FACTS | ({"optimizer.lr": "0.5"} if rank == odd else {})
        try:
            rendezvous.meet(store, rank, size, fingerprint, start_seconds=2 if missing else 30)
        except AlignctlError as error:
            return error
        return None

    there = [rank for rank in range(size) if rank != missing]
    with ThreadPoolExecutor(size) as pool:
        return [*pool.map(come, there)]


def test_ranks_that_agree_go_on() -> None:
    assert answers(4) == [None] * 4


def test_a_rank_that_is_missing_is_named_to_all() -> None:
    for error in answers(4, missing=2):
        assert isinstance(error, LostError)
        assert error.message == "rank 2 of 4 did not come within 2 seconds"


def test_a_rank_that_differs_is_named_with_what_differs() -> None:
    host = socket.gethostname()
    for error in answers(3, odd=1):
        assert isinstance(error, UserError)
        assert error.message.splitlines() == [
            f"rank 1 on {host} differs from rank 0:",
            f"  optimizer.lr: 1e-05 for rank 0 on {host}, 0.5 there",
        ]


@pytest.fixture
def group(tmp_path: Path) -> Iterator[dist.ProcessGroup]:
    """A group of this process alone."""
    where = f"file://{tmp_path / 'store'}"
    dist.init_process_group("gloo", init_method=where, rank=0, world_size=1)
    assert dist.group.WORLD is not None
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_a_group_that_answers(group: dist.ProcessGroup) -> None:
    given_up: list[AlignctlError] = []
    rendezvous.check_groups({"whole job's": group}, start_seconds=60, give_up=given_up.append)
    assert not given_up


def test_who_keeps_a_collective_from_ending_is_named() -> None:
    """Ranks 0 and 2 of a group have come, 2 got through, 3 never came."""
    store = HashStore()
    for key in ("0/in", "2/in", "2/out"):
        store.set(f"answer/tensor-parallel/{key}", "")
    found = rendezvous._silent(store, "tensor-parallel", [0, 2, 3])
    what = "the first collective of the tensor-parallel group (ranks 0, 2, 3)"
    assert found.message == f"rank 3 did not come to {what}"
    store.set("answer/tensor-parallel/3/in", "")
    found = rendezvous._silent(store, "tensor-parallel", [0, 2, 3])
    assert found.message == f"ranks 0, 3 did not get through {what}"
