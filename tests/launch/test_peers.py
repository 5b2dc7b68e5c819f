"""Nodes that share a folder, each a thread; time-outs are short, and no test measures them."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from alignctl.errors import AlignctlError, LostError, RunError, UserError
from alignctl.launch.nodes import Nodes
from alignctl.launch.peers import Heartbeat, Peers
from alignctl.run_folder import RunFolder

FACTS = {"alignctl's source": "abc", "optimizer.lr": "1e-05"}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def peers(
    folder: RunFolder, rank: int, *, nnodes: int = 2, start: float = 60, silence: float = 60
) -> Peers:
    nodes = Nodes(nnodes, rank, "node0", 29500)
    return Peers(folder, nodes, 8, start_seconds=start, silence_seconds=silence)


def write(folder: RunFolder, rank: int, sign: Heartbeat) -> None:
    folder.node_file(rank).parent.mkdir(exist_ok=True)
    folder.node_file(rank).write_text(json.dumps(dataclasses.asdict(sign)))


def outcomes(*works: object) -> list[AlignctlError | None]:
    """What each of several callables raised, all of them run at the same time."""

    def attempt(work: object) -> AlignctlError | None:
        assert callable(work)
        try:
            work()
        except AlignctlError as error:
            return error
        return None

    with ThreadPoolExecutor(len(works)) as pool:
        return [*pool.map(attempt, works)]


def lead(node: Peers) -> None:
    try:
        node.gather(FACTS)
        node.start()
    except AlignctlError as error:
        node.cannot_start(error)
        raise


def running(folder: RunFolder, nnodes: int = 2, silence: float = 60) -> list[Peers]:
    """Nodes that have met."""
    nodes = [peers(folder, n, nnodes=nnodes, silence=silence) for n in range(nnodes)]
    works = [lambda: lead(nodes[0]), *(lambda n=n: n.enter(FACTS) for n in nodes[1:])]
    assert outcomes(*works) == [None] * nnodes
    return nodes


def test_nodes_meet_in_any_number(folder: RunFolder) -> None:
    nodes = running(folder, nnodes=4)
    assert [node.trouble() for node in nodes] == [None] * 4


def test_a_node_that_is_missing_is_named_with_its_ranks(folder: RunFolder) -> None:
    second = peers(folder, 1, nnodes=4)
    first = peers(folder, 0, nnodes=4, start=5)
    ours, theirs = outcomes(lambda: lead(first), lambda: second.enter(FACTS))
    assert ours is not None
    assert theirs is not None
    what = "node 2 (ranks 16 to 23), node 3 (ranks 24 to 31) of 4 nodes did not join within"
    assert ours.message.startswith(what)
    assert what in theirs.message
    assert isinstance(ours, RunError)


def test_a_node_without_node_0_says_which_folder_it_watched(folder: RunFolder) -> None:
    with pytest.raises(LostError, match=r"node 0 has not opened .* within 0 seconds"):
        peers(folder, 1, start=0.2).enter(FACTS)


def test_a_node_that_would_run_another_job_ends_all_with_what_differs(folder: RunFolder) -> None:
    first, second = peers(folder, 0), peers(folder, 1)
    found = outcomes(lambda: lead(first), lambda: second.enter(FACTS | {"optimizer.lr": "0.5"}))
    for error in found:
        assert isinstance(error, UserError)
        assert error.message.splitlines()[1:] == ["  optimizer.lr: 1e-05 on node 0, 0.5 there"]
    assert found[0] is not None
    assert found[0].message.startswith("node 1 (")


def test_a_node_that_finds_its_own_mistake_tells_node_0(folder: RunFolder) -> None:
    first, second = peers(folder, 0), peers(folder, 1)
    mistake = UserError("launch.nproc_per_node 8: only 4 GPUs can be seen", "give --nproc 4")
    (error, _) = outcomes(lambda: lead(first), lambda: second.cannot_start(mistake))
    assert isinstance(error, UserError)
    assert error.message.endswith(": launch.nproc_per_node 8: only 4 GPUs can be seen")
    assert error.message.startswith("node 1 (")
    assert error.hint == "give --nproc 4"


@pytest.mark.parametrize("state", ["gathering", "running", "failed"])
def test_what_an_earlier_launcher_left_is_not_believed(folder: RunFolder, state: str) -> None:
    """Node 0's old file does not change, so node 1 waits for a new one."""
    write(folder, 0, Heartbeat(session="old", state=state))  # type: ignore[arg-type]
    with pytest.raises(LostError, match="node 0 has not opened"):
        peers(folder, 1, start=0.5).enter(FACTS)
    write(folder, 1, Heartbeat(session="old", state="joined"))
    with pytest.raises(RunError, match=r"node 1 \(ranks 8 to 15\) of 2 nodes did not join"):
        peers(folder, 0, start=0.5).gather(FACTS)


def test_a_node_that_goes_silent_is_lost(folder: RunFolder) -> None:
    first, second = running(folder, silence=0.3)
    while first.trouble() is None:
        pass
    assert "has not been heard of for" in (first.trouble() or "")
    assert first.lost() == [1]
    second.leave(0, is_cause=True)
    assert first.trouble() is None, "a node that has ended is not lost"


def test_a_node_that_fails_is_trouble_and_its_heartbeatal_is_told(folder: RunFolder) -> None:
    first, second = running(folder)
    second.leave(-9, is_cause=True)
    assert "node 1 (" in (first.trouble() or "")
    first.leave(-9, is_cause=False)
    for node in (first, second):
        node.wait_for_others()
        assert node.list_killed() == {1: 9}, "node 0 was ended because of node 1"


def test_logs_are_kept_until_every_node_has_read_them(folder: RunFolder) -> None:
    first, second = running(folder)
    first.leave(1, is_cause=True)
    second.leave(1, is_cause=True)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(first.wait_for_release)
        assert not waiting.done()
        second.release_logs()
        waiting.result(timeout=60)


def test_nodes_meet_again_after_a_failure(folder: RunFolder) -> None:
    first, second = running(folder)
    for node in (first, second):
        node.leave(1, is_cause=True)
        node.release_logs()
    assert outcomes(lambda: lead(first), lambda: second.enter(FACTS)) == [None, None]
    assert first.trouble() is None


def test_a_finished_run_is_not_waited_for(folder: RunFolder) -> None:
    folder.write_result({"steps": 1})
    peers(folder, 1, start=0.1).enter(FACTS)


def test_a_rank_is_named_with_its_node(folder: RunFolder) -> None:
    first, _ = running(folder)
    assert first.name_of_rank(9).startswith("rank 9 (node 1, ")
    assert first.name_of_rank(0).startswith("rank 0 (node 0, ")
