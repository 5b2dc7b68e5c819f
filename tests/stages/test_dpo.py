"""DPO end to end: the reference, which is computed once, and what a run leaves behind."""

import math
import shutil
from pathlib import Path

import pytest

from alignctl.run_folder import RunFolder
from tests import commands, tiny
from tests.commands import Outcome
from tests.e2e.test_resume import content, rows
from tests.stages.conftest import Alignctl, refused

pytestmark = pytest.mark.ci

METRICS = {"accuracy", "margin", "chosen_reward", "rejected_reward", "chosen_logprob"}


def dpo(workspace: Path, output: Path, *overrides: str, **flags: object) -> list[object]:
    """A run of the workspace's model, pairs and preset."""
    inputs = {"preset": "tiny.yaml", "load": "hf", "data": "pairs.jsonl"}
    named = {name: workspace / file for name, file in inputs.items()} | flags
    words = [word for name, value in named.items() for word in (f"--{name}", value)]
    return ["dpo", *words, "--output", output, *overrides]


@pytest.fixture(scope="module")
def first(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A finished run, with its cache beside it."""
    folder = tmp_path_factory.mktemp("dpo") / "first"
    outcome = commands.alignctl(*dpo(workspace, folder))
    assert outcome.code == 0, outcome.text
    return folder, outcome


def cache_file(run: Path) -> Path:
    (file,) = (run.parent / ".cache/reference").glob("*.npy")
    return file


def test_a_policy_starts_as_its_own_reference_and_learns_to_prefer(
    first: tuple[Path, Outcome],
) -> None:
    """Loss ln 2, margin 0, accuracy one half; the loss is lower at the end."""
    folder, outcome = first
    start, end = rows(RunFolder(folder), "validation")
    assert start["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert (start["margin"], start["accuracy"]) == pytest.approx((0, 0.5), abs=1e-5)
    assert end.keys() >= METRICS
    assert end["loss"] < start["loss"]
    assert f"kept in {cache_file(folder)}" in outcome.err


def test_a_second_run_reads_the_reference_and_takes_the_same_steps(
    workspace: Path, first: tuple[Path, Outcome]
) -> None:
    second = first[0].with_name("second")
    outcome = commands.alignctl(*dpo(workspace, second))
    assert outcome.code == 0, outcome.text
    assert f"reference: read from {cache_file(second)}, which saves " in outcome.err
    ours, theirs = (rows(RunFolder(run), "train", "validation") for run in (second, first[0]))
    assert ours == theirs


@pytest.mark.slow
def test_a_run_goes_on_from_its_own_weights_against_the_first_ones(
    workspace: Path, first: tuple[Path, Outcome], tmp_path: Path
) -> None:
    """The cache was lost: the reference is computed from the start weights, then it is resumed."""
    run = RunFolder(shutil.copytree(first[0], tmp_path / "run"))
    (run.path / "result.json").unlink()
    (run.checkpoints / "latest_checkpointed_iteration.txt").write_text("2")
    shutil.rmtree(run.checkpoints / "iter_0000004")
    config = run.config.read_text().replace(str(first[0]), str(run.path))
    run.config.write_text(config)
    (run.data / "reference").unlink()
    outcome = commands.alignctl(*dpo(workspace, run.path))
    assert outcome.code == 0, outcome.text
    assert "reference: computed in " in outcome.err
    assert rows(run, "train", "validation") == rows(RunFolder(first[0]), "train", "validation")
    last = "checkpoints/iter_0000004"
    ours, theirs = content(run.path / last), content(first[0] / last)
    assert all(ours[key].equal(theirs[key]) for key in theirs)


def test_a_run_is_not_resumed_against_another_reference(
    alignctl: Alignctl, workspace: Path, first: tuple[Path, Outcome], tmp_path: Path
) -> None:
    run = shutil.copytree(first[0], tmp_path / "run")
    model = shutil.copytree(workspace / "hf", tmp_path / "hf")
    for file in (run / "config.json", run / "origin/folders.json"):
        text = file.read_text()
        for old, new in ((first[0], run), (workspace / "hf", model)):
            text = text.replace(f'"{old}"', f'"{new}"')
        file.write_text(text)
    (run / "result.json").unlink()
    (run / "data/reference").write_text(str(tmp_path / "gone" / cache_file(first[0]).name))
    tiny.write_model(model, seed=1)
    said = refused(alignctl(*dpo(workspace, run, load=model)))
    assert f"{run}: the reference model has changed since this run was started" in said


def test_a_damaged_cache_is_named(
    workspace: Path, first: tuple[Path, Outcome], tmp_path: Path
) -> None:
    cache = shutil.copytree(cache_file(first[0]).parent, tmp_path / "cache")
    file = cache / cache_file(first[0]).name
    file.write_bytes(file.read_bytes()[:-8])
    said = commands.alignctl(
        *dpo(workspace, tmp_path / "run", f"data.reference_cache={cache}", "train.steps=3")
    )
    assert f"{file}: not what was cached there" in refused(said, code=1)
    assert "hint: remove it, and it is computed again" in said.err
