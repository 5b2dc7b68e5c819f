"""Runs that keep their best checkpoint, end by patience, and are loaded at any checkpoint."""

import json
import shutil
from pathlib import Path

import pytest

from alignctl.checkpoints import manifest
from alignctl.config.presets.load import STAGES, resolve_all
from tests import commands, tiny_on_policy
from tests.stages.conftest import Alignctl, refused

pytestmark = pytest.mark.ci

WATCHED = (
    *("checkpoint.keep_best=loss", "checkpoint.keep=1", "checkpoint.save_interval=1000"),
    *("train.patience=2", "train.steps=40", "train.eval_interval=1"),
    # So large that the loss on held-out rows soon rises.
    *("optimizer.lr=0.05", "optimizer.schedule=constant", "data.validation_fraction=0.2"),
)


def sft(workspace: Path, output: Path, *knobs: str) -> commands.Outcome:
    flags = ["--preset", workspace / "tiny.yaml", "--load", workspace / "hf"]
    flags += ["--data", workspace / "train.jsonl", "--output", output]
    return commands.alignctl("sft", *flags, *knobs)


@pytest.fixture(scope="module")
def stopped(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("best") / "run"
    outcome = sft(workspace, output, *WATCHED)
    assert outcome.code == 0, outcome.text
    assert "no better loss in 2 validations (train.patience); best loss so far:" in outcome.text
    return output


def read(run: Path, kind: str) -> list[dict[str, float]]:
    return tiny_on_policy.rows(run, kind)


def test_a_run_ends_by_patience_and_keeps_its_best(stopped: Path) -> None:
    """Two checkpoints are left: the last, and the best, which lies two validations before it."""
    losses = {row["step"]: row["loss"] for row in read(stopped, "validation") if row["step"]}
    best = min(losses, key=lambda step: losses[step])
    last = max(losses)
    assert last == best + 2 < 40
    result = json.loads((stopped / "result.json").read_text())
    assert result["steps"] == last
    assert result["best"] == {
        "metric": "loss",
        "step": best,
        "value": losses[best],
        "checkpoint": "best",
    }
    assert str((stopped / "best").readlink()) == f"checkpoints/iter_{best:07d}"
    assert manifest.read(stopped / "best").iteration == best
    left = sorted(each.name for each in (stopped / "checkpoints").glob("iter_*"))
    assert left == [f"iter_{best:07d}", f"iter_{last:07d}"]


def test_a_run_that_goes_on_ends_where_it_would_have(
    stopped: Path, workspace: Path, tmp_path: Path
) -> None:
    """Taken back to its best, before its link was made: the same rows to the last bit."""
    best = json.loads((stopped / "result.json").read_text())["best"]["step"]
    run = tmp_path / "run"
    shutil.copytree(stopped, run, symlinks=True)
    (run / "result.json").unlink()
    (run / "best").unlink()
    (run / "checkpoints/latest_checkpointed_iteration.txt").write_text(str(best))
    shutil.rmtree(run / f"checkpoints/iter_{best + 2:07d}")
    outcome = sft(workspace, run, *WATCHED)
    assert outcome.code == 0, outcome.text
    for kind in ("train", "validation"):
        memory = {"peak_memory_gib"}
        assert [{k: v for k, v in row.items() if k not in memory} for row in read(run, kind)] == [
            {k: v for k, v in row.items() if k not in memory} for row in read(stopped, kind)
        ]
    assert (run / "result.json").read_text() == (stopped / "result.json").read_text()
    assert (run / "best").readlink() == (stopped / "best").readlink()


def test_one_that_was_killed_when_patience_had_ended_takes_no_further_step(
    stopped: Path, workspace: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(stopped, run, symlinks=True)
    (run / "result.json").unlink()
    outcome = sft(workspace, run, *WATCHED)
    assert outcome.code == 0, outcome.text
    assert (run / "result.json").read_text() == (stopped / "result.json").read_text()
    assert read(run, "train") == read(stopped, "train")


def test_a_checkpoint_is_loaded_by_name_wherever_a_run_is(
    stopped: Path, workspace: Path, tmp_path: Path
) -> None:
    best = json.loads((stopped / "result.json").read_text())["best"]["step"]
    at_best, at_step = stopped.with_name("run@best"), stopped.with_name(f"run@iter_{best}")
    for load, save in ((at_best, "a"), (at_step, "b"), (stopped, "c")):
        words = ("--load", load, "--save", tmp_path / save, "--verify", "none")
        outcome = commands.alignctl("convert-mg2hf", *words)
        assert outcome.code == 0, outcome.text
    weights = [(tmp_path / each / "model.safetensors").read_bytes() for each in "abc"]
    assert weights[0] == weights[1] != weights[2]
    flags = ["--preset", workspace / "tiny.yaml", "--load", at_best, "--data"]
    flags += [workspace / "train.jsonl", "--output", tmp_path / "next", "train.steps=3"]
    outcome = commands.alignctl("sft", *flags)
    assert outcome.code == 0, outcome.text
    origin = json.loads((tmp_path / "next/origin/folders.json").read_text())
    assert origin["load"].endswith(f"/run/checkpoints/iter_{best:07d}"), "not the link"


@pytest.mark.parametrize(
    "words",
    [
        ("convert-mg2hf", "--save", "out"),
        ("sft", "--preset", "tiny.yaml", "--data", "train.jsonl", "--output", "out"),
        ("generate", "--data", "train.jsonl", "--output", "out.jsonl"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_refused(
    words: tuple[str, ...], stopped: Path, alignctl: Alignctl
) -> None:
    said = refused(alignctl(words[0], "--load", stopped.with_name("run@iter_39"), *words[1:]))
    assert "there is no checkpoint 'iter_39' in" in said
    assert "hint: there are @best, @iter_" in said


@pytest.mark.parametrize(
    ("stage", "knob", "said"),
    [
        ("sft", "checkpoint.keep_best=los", "loss, token_accuracy; did you mean loss?"),
        ("sft", "checkpoint.keep_best=score", "does not measure this on held-out rows"),
        ("reward", "checkpoint.keep_best=score", "but loss, accuracy, margin"),
        ("sft", "checkpoint.best_is=max", "checkpoint.best_is max has no effect without"),
        ("sft", "train.patience=0", "train.patience must be at least 1"),
        ("sft", "train.patience=2", "nothing is held out"),
        ("sft", "checkpoint.keep_best=loss", "nothing is held out"),
    ],
)
def test_what_cannot_be_watched_is_refused(
    stage: str, knob: str, said: str, alignctl: Alignctl, workspace: Path, tmp_path: Path
) -> None:
    data = "train.jsonl" if stage == "sft" else "pairs.jsonl"
    flags = ("--preset", "tiny.yaml", "--load", "hf", "--data", data, "--output", tmp_path / "new")
    found = alignctl(stage, *flags, knob, "data.validation_fraction=0.0")
    assert found.code == 2
    assert said in found.err
    assert not (tmp_path / "new").exists()


def test_every_stage_measures_what_can_be_watched(finished: Path, rewarded: Path) -> None:
    """Of sft and reward here; other stages' tests compare theirs."""
    configs = resolve_all("tiny-llama", [])
    assert configs.keys() <= STAGES.keys()
    for run, stage in ((finished, "sft"), (rewarded, "reward")):
        names = {name for row in read(run, "validation") for name in row}
        assert not names or names >= set(configs[stage].measured)
