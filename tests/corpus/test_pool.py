"""Processes that work on many items, and what becomes of those that are killed."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignctl.corpus.pool import map_in_order
from alignctl.errors import RunError

LARGE = 1 << 20
"""Bytes of an item, of which a pipe holds a part only."""


def double(item: bytes) -> bytes:
    return item * 2


def die_at(item: bytes) -> bytes:
    if item == b"die":
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def divide(item: int) -> float:
    return 1 / item


def begin(file: Path | None) -> None:
    if file is not None:
        file.read_bytes()


def kill_one(place: int) -> None:
    """Kills a worker, and does not wait until it is gone."""
    children = multiprocessing.active_children()
    os.kill(children[place % len(children)].pid or 0, signal.SIGKILL)


@pytest.mark.parametrize("killed_at", range(8))
def test_a_worker_that_is_killed_at_any_item_is_told(killed_at: int) -> None:
    def items() -> Iterator[bytes]:
        for number in range(50):
            if number == killed_at:
                kill_one(number)
            yield bytes([number]) * LARGE

    results = map_in_order(double, items(), 2, begin, None)
    given: list[bytes] = []
    with pytest.raises(RunError, match="a worker process was killed"):
        given.extend(results)
    assert given == [bytes([number]) * LARGE * 2 for number in range(len(given))]
    assert not multiprocessing.active_children()


def test_what_comes_before_the_item_that_a_worker_died_of_is_given() -> None:
    items = [b"a", b"b", b"c", b"die", b"e"]
    results = map_in_order(die_at, items, 2, begin, None)
    assert [next(results) for _ in range(3)] == [b"a", b"b", b"c"]
    with pytest.raises(RunError, match="a worker process was killed"):
        next(results)


def test_what_a_worker_raises_is_raised_with_its_place_there(tmp_path: Path) -> None:
    results = map_in_order(divide, [1, 2, 0], 2, begin, None)
    assert next(results) == 1
    assert next(results) == 0.5
    with pytest.raises(ZeroDivisionError) as raised:
        next(results)
    assert "in divide" in "".join(raised.value.__notes__)
    with pytest.raises(FileNotFoundError, match="no such"):
        next(map_in_order(double, [b"a"], 2, begin, tmp_path / "no such"))
    assert not multiprocessing.active_children()
