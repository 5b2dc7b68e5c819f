"""The folder of a run's checkpoints, of which an older one may become the newest again."""

from pathlib import Path

from alignctl.engines import checkpoint_folder
from alignctl.launch.run_folder import RunFolder


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
