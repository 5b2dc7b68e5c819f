"""A run that was stopped or killed, however often, is the run that nobody touched: bit for bit.

Everything goes through the command line, on two ranks, with dropout (so that random states count)
and over the end of an epoch (so that the order of the rows does).
"""

import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from alignctl.checkpoints import manifest
from alignctl.run_folder import RunFolder
from tests import commands, tiny

pytestmark = [pytest.mark.ci, pytest.mark.timeout(1800)]

STEPS = 20
LAYOUTS: dict[str, dict[str, object]] = {
    "dp2": {},
    "dp2 distributed optimizer": {"parallel.distributed_optimizer": "true"},
    "tp2": {"parallel.tp": 2},
    "tp2 sequence parallel": {"parallel.tp": 2, "parallel.sequence_parallel": "true"},
    "pp2": {"parallel.pp": 2},
}
FAST = "dp2 distributed optimizer"


@dataclass(frozen=True)
class Setting:
    """A model, its data, and the run that nobody touched."""

    inputs: Path
    layout: dict[str, object]
    whole: RunFolder

    def command(self, output: Path) -> list[object]:
        """`alignctl ...` for the same run in another folder."""
        return _command(self.inputs, self.layout, output)


def _command(inputs: Path, layout: dict[str, object], output: Path) -> list[object]:
    flags = ["--preset", inputs / "tiny.yaml", "--load", inputs / "hf"]
    data = ["--data", inputs / "train.jsonl", "--output", output]
    return ["sft", *flags, *data, *(f"{key}={value}" for key, value in layout.items())]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    tiny.write_model(folder / "hf")
    # They go into every checkpoint and reach the disk one by one: the end of a save takes a while.
    for number in range(100):
        (folder / f"hf/notes_{number}.md").touch()
    tiny.write_rows(folder / "train.jsonl")
    preset = tiny.preset()
    preset["model"] |= {"attention_dropout": 0.1, "hidden_dropout": 0.1}
    preset["sft"]["batch"] |= {"micro_batch_size": 1, "global_batch_size": 8}
    preset["sft"]["train"] = {"steps": STEPS, "eval_interval": 4}
    preset["sft"]["checkpoint"] = {"save_interval": 2}
    tiny.write_preset(folder / "tiny.yaml", **preset)
    return folder


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name == FAST else pytest.mark.slow) for name in LAYOUTS],
)
def setting(
    request: pytest.FixtureRequest, inputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Setting:
    layout = LAYOUTS[request.param]
    whole = RunFolder(tmp_path_factory.mktemp("whole") / "run")
    outcome = commands.alignctl(*_command(inputs, layout, whole.path))
    assert outcome.code == 0, outcome.text
    return Setting(inputs, layout, whole)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture
def start(setting: Setting, run: RunFolder) -> Iterator[Callable[[], "subprocess.Popen[str]"]]:
    """Starts an attempt at the run; whatever still runs at the end of the test is killed."""
    started = []

    def launch() -> "subprocess.Popen[str]":
        started.append(commands.start(*setting.command(run.path)))
        return started[-1]

    yield launch
    for process in started:
        commands.kill_tree(process)


Start = Callable[[], "subprocess.Popen[str]"]


def rows(run: RunFolder, *kinds: str) -> list[dict[str, Any]]:
    """What was measured, without what depends on the clock and the machine."""
    clock = ("time", "tokens_per_second", "peak_memory_gib", "seconds_data", "seconds_training")
    if not run.metrics.exists():
        return []
    lines = [line for line in run.metrics.read_text().splitlines(True) if line.endswith("\n")]
    found = [json.loads(line) for line in lines]
    return [
        {key: value for key, value in row.items() if key not in clock}
        for row in found
        if row["kind"] in kinds
    ]


def steps_done(run: RunFolder) -> int:
    return max((row["step"] for row in rows(run, "train")), default=0)


def content(checkpoint: Path) -> dict[str, Tensor]:
    """All that a checkpoint holds: weights, optimizer, random states, step counters.

    DeepSpeed's is a Hugging Face folder, with the state of each rank below it.
    """
    if (checkpoint / "deepspeed").is_dir():
        files = {file.stem: load_file(file) for file in checkpoint.rglob("*.safetensors")}
        return {f"{name}.{key}": each for name, held in files.items() for key, each in held.items()}
    state: dict[str, Any] = {}
    planner = _EmptyStateDictLoadPlanner()
    _load_state_dict(state, FileSystemReader(checkpoint), planner=planner, no_dist=True)
    state["common"] = torch.load(checkpoint / "common.pt", weights_only=True)
    return dict(_leaves(state, ""))


def _leaves(tree: object, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, BytesIO):
        yield from _leaves(torch.load(tree, weights_only=True), name)
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{name}/{key}")
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield from _leaves(value, f"{name}/{number}")
    elif isinstance(tree, Tensor | float | int):
        yield name, torch.as_tensor(tree)


def assert_complete(run: RunFolder) -> None:
    """Every checkpoint that has a name is whole, and the newest of those pointed to is one."""
    for checkpoint in run.checkpoints.glob("iter_*"):
        manifest.verify_checksums(checkpoint, manifest.read(checkpoint))
    run.latest_checkpoint()


def assert_same(run: RunFolder, whole: RunFolder) -> None:
    assert rows(run, "train", "validation") == rows(whole, "train", "validation")
    assert run.read_result() == whole.read_result()
    ours, theirs = (content(folder.checkpoints / f"iter_{STEPS:07d}") for folder in (run, whole))
    assert ours.keys() == theirs.keys()
    is_deepspeed = any(key.startswith("rank_1.") for key in ours)
    others = ("rank_1.random.", "rank_1.0.step") if is_deepspeed else ("random.1.", "lr")
    for part in ("exp_avg", *others):
        assert any(part in key for key in ours), f"{part} is not stored"
    different = [key for key, tensor in ours.items() if not torch.equal(tensor, theirs[key])]
    assert different == []
    assert not list(run.checkpoints.glob(".*"))
    names = [file.relative_to(whole.checkpoints) for file in whole.checkpoints.glob("iter_*/*")]
    unlike = (manifest.METADATA, manifest.NAME)  # an id of each save, and its checksum
    for name in (name for name in names if name.suffix and name.name not in unlike):
        ours_file, whole_file = (folder.checkpoints / name for folder in (run, whole))
        assert ours_file.read_bytes() == whole_file.read_bytes(), name


def test_a_run_stopped_by_sigterm_goes_on_as_if_it_had_not_been(
    setting: Setting, run: RunFolder, start: Start
) -> None:
    process = start()
    commands.wait_until(lambda: steps_done(run) >= 4, process)
    process.send_signal(signal.SIGTERM)
    outcome = commands.finish(process)
    assert outcome.code == 0, outcome.text
    stopped_at = steps_done(run)
    assert 4 <= stopped_at < STEPS
    assert f"stopped at step {stopped_at}; the same command goes on from there" in outcome.err
    assert run.latest_step() == stopped_at
    assert run.read_result() is None
    assert_complete(run)

    outcome = commands.finish(start())
    assert outcome.code == 0, outcome.text
    assert f"resuming {run.path} at step {stopped_at} (attempt 2)" in outcome.err
    assert_same(run, setting.whole)

    before = run.metrics.read_bytes()
    outcome = commands.finish(start())
    assert outcome.code == 0, outcome.text
    assert "holds this run already, finished" in outcome.err
    assert run.metrics.read_bytes() == before


def is_between_saves(run: RunFolder) -> bool:
    return steps_done(run) > run.latest_step() and not list(run.checkpoints.glob(".iter_*"))


def is_saving(run: RunFolder, file: str) -> bool:
    """Whether a save is under way and has come as far as this file."""
    return any((left / file).exists() for left in run.checkpoints.glob(".iter_*.partial"))


MOMENTS: dict[str, Callable[[RunFolder], bool]] = {
    "between saves": is_between_saves,
    "as a save begins": lambda run: is_saving(run, "."),
    "as tensors are written": lambda run: is_saving(run, "__0_0.distcp"),
    "as the manifest is written": lambda run: is_saving(run, "alignctl.json"),
}


def killed_at(moment: str, run: RunFolder, process: "subprocess.Popen[str]") -> bool:
    """Kills an attempt at a moment after its first save; False when the moment was over by then."""
    since = time.time()
    commands.wait_until(lambda: has_begun(run, since) and run.latest_step() > 0, process)
    below = commands.descendants(process.pid)
    commands.wait_until(lambda: MOMENTS[moment](run), process)
    commands.kill_tree(process, below)
    return bool(list(run.checkpoints.glob(".iter_*.partial"))) == (moment != "between saves")


@pytest.mark.slow  # minutes: a launch for every moment
def test_a_run_killed_again_and_again_keeps_its_checkpoints_and_goes_on(
    setting: Setting, run: RunFolder, start: Start
) -> None:
    num_attempts = 0
    for moment in MOMENTS:
        is_hit = False
        while not is_hit:
            is_hit = killed_at(moment, run, start())
            num_attempts += 1
            assert_complete(run)
            assert run.read_result() is None
    saved = run.latest_step()

    outcome = commands.finish(start())
    assert outcome.code == 0, outcome.text
    assert f"resuming {run.path} at step {saved} (attempt {num_attempts + 1})" in outcome.err
    assert_same(run, setting.whole)


@pytest.mark.slow
@pytest.mark.parametrize("setting", [FAST], indirect=True)
def test_a_run_killed_at_ten_moments_that_nobody_chose_goes_on(
    setting: Setting, run: RunFolder, start: Start
) -> None:
    """Whenever it reaches its end in spite of the kills, it starts anew."""
    chance = random.Random(20240229)
    num_kills = 0
    while num_kills < 10:
        since = time.time()
        process = start()
        commands.wait_until(lambda since=since: has_begun(run, since), process)  # type: ignore[misc]
        try:
            process.wait(chance.uniform(0.0, 1.0))
        except subprocess.TimeoutExpired:
            commands.kill_tree(process)
            num_kills += 1
            assert_complete(run)
        if run.read_result():
            assert_same(run, setting.whole)
            shutil.rmtree(run.path)
    outcome = commands.finish(start())
    assert outcome.code == 0, outcome.text
    assert_same(run, setting.whole)


def has_begun(run: RunFolder, since: float) -> bool:
    """Whether the ranks of an attempt have loaded everything."""
    if not run.metrics.exists():
        return False
    lines = [line for line in run.metrics.read_text().splitlines(True) if line.endswith("\n")]
    return any(row["kind"] == "start" and row["time"] > since for row in map(json.loads, lines))
