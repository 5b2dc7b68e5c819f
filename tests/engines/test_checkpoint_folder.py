"""The folder of a run's checkpoints, of which an older one may become the newest again."""

import shutil
from pathlib import Path

import pytest

from alignctl.checkpoints import holds
from alignctl.engines import checkpoint_folder
from alignctl.run_folder import RunFolder


def save(run: RunFolder, step: int, text: str) -> None:
    checkpoint_folder.start(run.checkpoints, step)
    (checkpoint_folder.partial_name(run.checkpoints, step) / "weights").write_text(text)
    checkpoint_folder.finish(run.checkpoints, step, keep=2)


def test_who_goes_back_saves_the_later_ones_anew(tmp_path: Path) -> None:
    """A checkpoint of an attempt that was killed is not taken for that of the next."""
    run = RunFolder(tmp_path)
    for step in (2, 4):
        save(run, step, "killed")
    checkpoint_folder.go_back(run.checkpoints, 2)
    assert run.latest_step() == 2
    save(run, 3, "new")
    assert sorted(each.name for each in run.checkpoints.glob("iter_*")) == [
        "iter_0000002",
        "iter_0000003",
        "iter_0000004",
    ]
    save(run, 4, "new")
    assert run.latest_step() == 4
    assert (run.checkpoints / "iter_0000004/weights").read_text() == "new"
    assert sorted(each.name for each in run.checkpoints.glob("iter_*")) == [
        "iter_0000003",
        "iter_0000004",
    ]


def test_who_goes_back_to_the_start_has_no_checkpoint(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    checkpoint_folder.go_back(run.checkpoints, 0)  # nothing is there yet
    save(run, 2, "killed")
    checkpoint_folder.go_back(run.checkpoints, 0)
    assert run.latest_checkpoint() is None


def run_from(checkpoint: Path, folder: Path) -> RunFolder:
    """A run that started from another one's checkpoint."""
    run = RunFolder(folder)
    folder.mkdir()
    run.config.write_text("{}")
    holds.hold(checkpoint, run)
    return run


def names(run: RunFolder) -> list[int]:
    return sorted(int(each.name[-7:]) for each in run.checkpoints.glob("iter_*"))


def test_a_checkpoint_that_another_run_needs_stays_until_that_one_is_finished(
    tmp_path: Path,
) -> None:
    """keep=2; one that started from step 1 still runs while 2 to 4 are saved, and not at 5."""
    run = RunFolder(tmp_path / "run")
    save(run, 1, "a")
    other = run_from(run.checkpoints / "iter_0000001", tmp_path / "other")
    for step in (2, 3, 4):
        save(run, step, "a")
    assert names(run) == [1, 3, 4]
    other.write_result({})
    save(run, 5, "a")
    assert names(run) == [4, 5]
    assert not list(run.checkpoints.glob(".*"))


def test_a_base_of_adapters_stays_as_long_as_their_run_is_there(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    save(run, 1, "a")
    other = run_from(run.checkpoints / "iter_0000001", tmp_path / "other")
    other.config.write_text('{"lora": {"rank": 4}}')
    other.write_result({})
    for step in (2, 3, 4):
        save(run, step, "a")
    assert names(run) == [1, 3, 4]
    shutil.rmtree(other.path)
    save(run, 5, "a")
    assert names(run) == [4, 5]


def test_a_checkpoint_that_is_gone_cannot_be_marked(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    for step in (1, 2, 3):
        save(run, step, "a")
    with pytest.raises(FileNotFoundError):
        run_from(run.checkpoints / "iter_0000001", tmp_path / "other")
    assert not list(run.checkpoints.glob(".*"))
