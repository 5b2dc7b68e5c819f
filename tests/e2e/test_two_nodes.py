"""Jobs on two nodes, for real: two launchers and two torchruns in two network namespaces.

Each node has one rank, TP is 2: every layer of every step goes over the cable between them.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignctl.run_folder import RunFolder
from tests import commands, tiny
from tests.e2e.test_resume import STEPS, assert_same
from tests.two_nodes import Node, Process, finish, two_nodes

pytestmark = [pytest.mark.ci, pytest.mark.timeout(1800)]

SILENCE = 20


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Node, Node]]:
    try:
        with two_nodes() as machines:
            yield machines
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine allows no network namespaces: {error.stderr}")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    tiny.write_model(folder / "hf")
    tiny.write_rows(folder / "train.jsonl")
    preset = tiny.preset()
    preset["model"] |= {"attention_dropout": 0.1, "hidden_dropout": 0.1}
    preset["sft"]["parallel"]["tp"] = 2
    preset["sft"]["train"] = {"steps": STEPS, "eval_interval": 10}
    preset["sft"]["checkpoint"] = {"save_interval": 5}
    preset["sft"]["launch"] |= {"start_timeout_seconds": 120, "node_timeout_seconds": SILENCE}
    tiny.write_preset(folder / "tiny.yaml", **preset)
    return folder


def command(inputs: Path, output: Path, *overrides: str) -> list[object]:
    flags = ["--preset", inputs / "tiny.yaml", "--load", inputs / "hf"]
    return ["sft", *flags, "--data", inputs / "train.jsonl", "--output", output, *overrides]


ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""What a rank has where several share a node; with more threads sums come in another order."""


def start(nodes: tuple[Node, Node], words: list[object]) -> tuple[Process, Process]:
    """The same command on both nodes."""
    place = ["--nproc", "1", "--nnodes", "2", "--master-addr", nodes[0].address]
    first, second = (
        node.start(*words, *place, "--node-rank", number, env=ONE_THREAD)
        for number, node in enumerate(nodes)
    )
    return first, second


@pytest.fixture(scope="module")
def one_node(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run on one node of two ranks."""
    folder = RunFolder(tmp_path_factory.mktemp("one") / "run")
    outcome = commands.alignctl(*command(inputs, folder.path))
    assert outcome.code == 0, outcome.text
    return folder


def test_two_nodes_take_the_steps_of_one_bit_for_bit(
    nodes: tuple[Node, Node], inputs: Path, one_node: RunFolder, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    for process in start(nodes, command(inputs, folder.path)):
        outcome = finish(process)
        assert outcome.code == 0, outcome.text
        assert f"of 2, 1 ranks each, at {nodes[0].address}:29500" in outcome.err
    assert_same(folder, one_node)


def rank_process(folder: RunFolder, rank: int) -> int:
    """The process of a rank in the latest attempt."""
    heads = [line for line in folder.rank_log(rank).open() if line.startswith("=== ")]
    return int(heads[-1].partition(" process ")[2].partition(":")[0])


def wait_for_step(folder: RunFolder, step: int, process: Process) -> None:
    commands.wait_until(
        lambda: folder.metrics.exists() and f'"step": {step}, ' in folder.metrics.read_text(),
        process,
    )


@pytest.mark.slow
def test_a_rank_that_is_killed_is_named_on_both_nodes_and_the_job_restarts(
    nodes: tuple[Node, Node], inputs: Path, one_node: RunFolder, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    processes = start(nodes, [*command(inputs, folder.path), "--max-restarts", "1"])
    wait_for_step(folder, 13, processes[0])
    os.kill(rank_process(folder, 1), signal.SIGKILL)
    for process in processes:
        outcome = finish(process)
        assert outcome.code == 0, outcome.text
        first = next(line for line in outcome.err.splitlines() if line.startswith("error:"))
        assert first.startswith("error: rank 1 (node 1, ")
        assert "was killed by signal 9 (SIGKILL)" in first
        assert "restart 1 of 1" in outcome.err
        assert "at step 10 (attempt 2)" in outcome.err
    assert_same(folder, one_node)


@pytest.mark.slow
def test_a_node_that_is_gone_ends_the_other_and_the_same_command_goes_on(
    nodes: tuple[Node, Node], inputs: Path, one_node: RunFolder, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    words = command(inputs, folder.path)
    first, second = start(nodes, words)
    wait_for_step(folder, 13, first)
    commands.kill_tree(second)
    outcome = finish(first)
    assert outcome.code == 1, outcome.text
    assert "error: node 1 (" in outcome.err
    assert f"has not been heard of for {SILENCE} seconds" in outcome.err
    for process in start(nodes, words):
        outcome = finish(process)
        assert outcome.code == 0, outcome.text
    assert_same(folder, one_node)


@pytest.mark.slow
def test_a_torchrun_that_is_killed_is_told_on_both_nodes(
    nodes: tuple[Node, Node], inputs: Path, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    processes = start(nodes, command(inputs, folder.path))
    wait_for_step(folder, 3, processes[0])
    (torchrun, *_) = commands.descendants(processes[1].pid)
    os.kill(torchrun, signal.SIGKILL)
    for process in processes:
        outcome = finish(process)
        assert "): torchrun was killed by signal 9 (SIGKILL)" in outcome.err
        assert "error: node 1 (" in outcome.err
        assert outcome.code == 1, outcome.text


@pytest.mark.slow
def test_nodes_with_different_settings_do_not_start(
    nodes: tuple[Node, Node], inputs: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    place = ["--nnodes", "2", "--master-addr", nodes[0].address]
    words = command(inputs, output)
    first = nodes[0].start(*words, *place, "--node-rank", 0, "--nproc", 1)
    second = nodes[1].start(*words, *place, "--node-rank", 1, "--nproc", 2)
    for process in (first, second):
        outcome = finish(process)
        assert outcome.code == 2, outcome.text
        assert "launch.nproc_per_node: 1 on node 0, 2 there" in outcome.err
    assert not output.exists()


@pytest.mark.slow
def test_a_stop_on_one_node_saves_on_both(
    nodes: tuple[Node, Node], inputs: Path, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    processes = start(nodes, command(inputs, folder.path, "train.steps=10000"))
    wait_for_step(folder, 3, processes[0])
    processes[1].terminate()
    for number, process in enumerate(processes):
        outcome = finish(process)
        assert outcome.code == 0, outcome.text
        assert "the same command goes on from there" in outcome.err
        assert ("node 0 tells how far the run is" in outcome.err) == (number == 1)
    assert folder.latest_step() > 0
