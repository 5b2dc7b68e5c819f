"""Which validation is the best, when patience ends, and the link to the best checkpoint."""

from pathlib import Path
from typing import Any

import pytest

from alignctl.engines.best import Watch, link_best
from alignctl.engines.checkpoint_folder import finish, start
from alignctl.run_folder import RunFolder


def validations(*values: object) -> list[dict[str, Any]]:
    """Rows of metrics, one validation every ten steps, from step 0 on."""
    return [
        {"kind": "validation", "step": 10 * place, "time": 0.0, "loss": value}
        for place, value in enumerate(values)
    ]


def observed(watch: Watch, *values: float) -> list[bool]:
    rows = validations(*values)
    return [watch.observe(row["step"], row) for row in rows]


def test_only_what_is_strictly_better_is_the_best() -> None:
    """Step 0, the model before it has learned, is none: it has no checkpoint."""
    watch = Watch("loss", is_higher_better=False)
    assert observed(watch, 0.1, 3.0, 2.0, 2.0, 2.5, 1.0) == [False, True, True, False, False, True]
    assert (watch.step, watch.value, watch.num_worse) == (50, 1.0, 0)


def test_a_higher_one_is_better_where_that_is_said() -> None:
    watch = Watch("loss", is_higher_better=True)
    assert observed(watch, 9, 1, 3, 2) == [False, True, True, False]


def test_what_is_no_number_is_never_the_best() -> None:
    nan = float("nan")
    watch = Watch("loss", is_higher_better=False, patience=2)
    assert observed(watch, 1, nan, 5, nan, float("inf")) == [False, False, True, False, False]
    assert watch.is_over


def test_patience_counts_validations_since_the_best() -> None:
    watch = Watch("loss", is_higher_better=False, patience=2)
    ends = []
    for row in validations(0, 3, 4, 2, 2, 1, 1.5, 1.25):
        watch.observe(row["step"], row)
        ends.append(watch.is_over)
    assert ends == [False] * 7 + [True]
    assert watch.describe_end(70, 100) == (
        "stopped after step 70 of 100: no better loss in 2 validations (train.patience); "
        "best loss so far: 1 at step 50"
    )


@pytest.mark.parametrize("killed_after", range(8))
def test_a_resumed_run_counts_as_one_that_was_not_interrupted(
    killed_after: int, tmp_path: Path
) -> None:
    """Whatever validation it was killed after: what it recalls is what it had, bit for bit."""
    rows = validations(0, 0.1 + 0.2, 0.3, 0.7, "nan", 1 / 3, 0.25, 0.26)
    whole = Watch("loss", is_higher_better=False, patience=9)
    for row in rows:
        whole.observe(row["step"], row)
    resumed = Watch("loss", is_higher_better=False, patience=9)
    others = [{"kind": "train", "step": 5, "loss": 0.0}]
    resumed.recall(RunFolder(tmp_path), [*rows[: killed_after + 1], *others], links=True)
    for row in rows[killed_after + 1 :]:
        resumed.observe(row["step"], row)
    assert vars(resumed) == vars(whole)


def save(run: Path, step: int, *, keep: int | None = None) -> None:
    start(run / "checkpoints", step)
    finish(run / "checkpoints", step, keep=keep)


def names(run: Path) -> list[str]:
    return sorted(each.name for each in (run / "checkpoints").glob("iter_*"))


def test_the_best_checkpoint_is_never_removed_as_long_as_it_is_the_best(tmp_path: Path) -> None:
    """Of ten, two are kept and the best, which is the first, then the fifth."""
    folder = RunFolder(tmp_path)
    for step in range(1, 11):
        save(tmp_path, step, keep=2)
        if step in (1, 5):
            link_best(folder, step)
        assert folder.best.is_dir(), step
        best = "iter_0000005" if step >= 5 else "iter_0000001"
        assert best in names(tmp_path)
    assert names(tmp_path) == ["iter_0000005", "iter_0000009", "iter_0000010"]
    assert str(folder.best.readlink()) == "checkpoints/iter_0000005"


def test_a_link_that_was_not_made_any_more_is_made_when_the_run_goes_on(tmp_path: Path) -> None:
    """Killed between a checkpoint and its link; and by another process than the first, nothing."""
    save(tmp_path, 10)
    save(tmp_path, 20)
    folder = RunFolder(tmp_path)
    link_best(folder, 10)
    rows = validations(0, 3, 2)
    other = Watch("loss", is_higher_better=False, keeps_best=True)
    other.recall(folder, rows, links=False)
    assert str(folder.best.readlink()) == "checkpoints/iter_0000010"
    watch = Watch("loss", is_higher_better=False, keeps_best=True)
    watch.recall(folder, rows, links=True)
    assert str(folder.best.readlink()) == "checkpoints/iter_0000020"


def test_a_best_whose_checkpoint_was_not_kept_is_not_linked(tmp_path: Path) -> None:
    """As where checkpoint.keep_best is given only when the run goes on."""
    folder = RunFolder(tmp_path)
    watch = Watch("loss", is_higher_better=False, keeps_best=True)
    watch.recall(folder, validations(0, 1, 2), links=True)
    assert not folder.best.is_symlink()
    assert watch.value == 1


def test_the_result_tells_the_best_where_it_is_watched() -> None:
    def result(**settings: Any) -> dict[str, Any]:
        watch = Watch("loss", is_higher_better=False, **settings)
        observed(watch, 0, 2.0)
        return watch.result

    assert result() == {}
    told = {"metric": "loss", "step": 10, "value": 2.0}
    assert result(patience=3) == {"best": told}
    assert result(keeps_best=True) == {"best": {**told, "checkpoint": "best"}}
