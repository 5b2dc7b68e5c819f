"""What follows a step: when it is validated and saved, what is linked and said, how it ends."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from alignctl.config.on_policy_run import GRPOConfig
from alignctl.engines.best import Watch
from alignctl.engines.conclusion import conclude
from alignctl.run_folder import RunFolder
from tests.on_policy import scripted


@pytest.fixture
def run(tmp_path: Path) -> Iterator[tuple[GRPOConfig, RunFolder]]:
    """Ten steps on one rank: a validation every second, a checkpoint every third."""
    train = {"steps": 10, "eval_interval": 2, "patience": 2}
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    store = f"file://{tmp_path / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield scripted.config(tmp_path, train=train, checkpoint={"save_interval": 3}), folder
    dist.destroy_process_group()


def story(
    run: tuple[GRPOConfig, RunFolder], watch: Watch, scores: list[float], *, stop_at: int = 99
) -> list[str]:
    """All that happens until a run of ten steps ends; a score for each validation."""
    events: list[str] = []
    for step in range(1, 11):

        def validate(step: int = step) -> bool:
            return watch.observe(step, {"score": scores[step // 2 - 1]})

        def save(is_kept: bool, step: int = step) -> None:
            events.append(f"{step} {'kept' if is_kept else 'saved'}")

        def is_stop_requested(step: int = step) -> bool:
            return step >= stop_at

        is_stopping = conclude(
            *run,
            watch,
            step,
            10,
            validate=validate,
            save=save,
            is_stop_requested=is_stop_requested,
            note=events.append,
        )
        if is_stopping or watch.is_over:
            break
    return events


def test_the_best_are_kept_until_patience_ends(run: Any) -> None:
    watch = Watch("score", is_higher_better=True, patience=2, keeps_best=True)
    assert story(run, watch, [1, 3, 2, 1]) == [
        *("2 kept", "best score so far: 1 at step 2", "3 saved"),
        *("4 kept", "best score so far: 3 at step 4", "6 saved", "8 kept"),
        "stopped after step 8 of 10: no better score in 2 validations (train.patience); "
        "best score so far: 3 at step 4",
    ]
    assert run[1].best.readlink() == Path("checkpoints/iter_0000004")


def test_a_run_that_is_asked_to_stop_saves_unless_that_was_its_last_step(run: Any) -> None:
    watch = Watch("score", is_higher_better=True)
    said = story(run, watch, [1] * 5, stop_at=4)
    assert said == ["3 saved", "4 saved", "stopped after step 4 of 10, as asked"]
    assert story(run, watch, [1] * 5, stop_at=10) == ["3 saved", "6 saved", "9 saved", "10 kept"]
    assert not run[1].best.is_symlink()
