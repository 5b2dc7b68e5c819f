"""`RUN@best` and `RUN@iter_100`: which checkpoint they mean, and paths that only look like them."""

from pathlib import Path

import pytest

from alignctl.errors import UserError
from alignctl.run_folder import checkpoint_at, run_at


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints 50 and 100, of which the first is the best."""
    run = tmp_path / "run"
    for step in (50, 100):
        (run / f"checkpoints/iter_{step:07d}").mkdir(parents=True)
    (run / "best").symlink_to("checkpoints/iter_0000050")
    return run


@pytest.mark.parametrize(
    ("which", "name"),
    [("best", "iter_0000050"), ("iter_100", "iter_0000100"), ("iter_0000100", "iter_0000100")],
)
def test_a_checkpoint_of_a_run_is_named_behind_an_at(run: Path, which: str, name: str) -> None:
    """Of the best the checkpoint itself is meant, not the link, which moves on."""
    assert checkpoint_at(run.with_name(f"run@{which}")) == run / "checkpoints" / name
    assert run_at(run.with_name(f"run@{which}")) == run_at(run.with_name("run@gone")) == run


def test_one_of_a_folder_of_checkpoints_is_named_alike(run: Path) -> None:
    found = checkpoint_at(run / "checkpoints@iter_100")
    assert found == run / "checkpoints/iter_0000100"


@pytest.mark.parametrize("name", ["run@best", "me@home", "@", "@best", "a@b@iter_100"])
def test_a_path_that_is_there_means_itself(run: Path, name: str) -> None:
    path = run.with_name(name)
    path.mkdir()
    assert checkpoint_at(path) == run_at(path) == path


def test_a_run_whose_name_has_an_at_has_checkpoints_too(run: Path) -> None:
    renamed = run.rename(run.with_name("me@home"))
    assert checkpoint_at(renamed) == renamed
    found = checkpoint_at(renamed.with_name("me@home@iter_50"))
    assert found == renamed / "checkpoints/iter_0000050"


@pytest.mark.parametrize("name", ["none@best", "none", "a@b/c"])
def test_where_there_is_no_run_a_path_stays_what_it_is(run: Path, name: str) -> None:
    assert checkpoint_at(run.parent / name) == run.parent / name


@pytest.mark.parametrize("which", ["iter_70", "last", "", "iter_", "best2", "-1"])
def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(
    run: Path, which: str
) -> None:
    with pytest.raises(UserError) as caught:
        checkpoint_at(run.with_name(f"run@{which}"))
    assert f"there is no checkpoint {which!r} in {run}" in caught.value.message
    assert caught.value.hint == "there are @best, @iter_50, @iter_100"


def test_a_run_without_a_best_says_how_to_have_one(run: Path) -> None:
    (run / "best").unlink()
    with pytest.raises(UserError) as caught:
        checkpoint_at(run.with_name("run@best"))
    assert caught.value.message.endswith("a run keeps its best with checkpoint.keep_best")
    assert caught.value.hint == "there are @iter_50, @iter_100"
