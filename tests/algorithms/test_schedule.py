"""The learning rate of a step, by hand and beside Megatron-Core's own scheduler."""

from types import SimpleNamespace
from typing import Any

import pytest

from alignctl.algorithms.schedule import learning_rate
from alignctl.config.sections import Optimizer


def rates(optimizer: Optimizer, *steps: int, total_steps: int = 10) -> list[float]:
    return [learning_rate(step, optimizer, total_steps=total_steps) for step in steps]


def megatrons(optimizer: Optimizer, *, total_steps: int, batch: int) -> list[float]:
    """What Megatron-Core has set when it takes each of the steps, and five beyond them.

    Its training loop takes a step, then tells the scheduler the sequences of it; and it counts
    warm-up and decay in sequences too (megatron/training/training.py).
    """
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    group: dict[str, Any] = {}
    holder: Any = SimpleNamespace(param_groups=[group])
    decay = (optimizer.decay_steps or total_steps) * batch
    fraction = optimizer.warmup_fraction
    warmup = (optimizer.warmup_steps or 0) * batch if fraction is None else fraction * decay
    scheduler = OptimizerParamScheduler(
        holder,
        init_lr=0.0,
        max_lr=optimizer.lr,
        min_lr=optimizer.min_lr,
        lr_warmup_steps=warmup,
        lr_decay_steps=decay,
        lr_decay_style=optimizer.schedule,
        start_wd=0.0,
        end_wd=0.0,
        wd_incr_steps=1,
        wd_incr_style="constant",
    )
    found = []
    for _ in range(total_steps + 5):
        found.append(group["lr"])
        scheduler.step(increment=batch)
    return found


@pytest.mark.parametrize("batch", [1, 48])
@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"warmup_steps": 1},
        {"warmup_steps": 7},
        {"warmup_steps": 39},
        {"warmup_steps": 7, "decay_steps": 23},
        {"warmup_steps": 7, "decay_steps": 60},
        {"warmup_fraction": 0.25},
        {"warmup_fraction": 0.25, "decay_steps": 20},
    ],
)
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_every_step_has_megatron_cores_rate(
    schedule: str, knobs: dict[str, Any], batch: int
) -> None:
    optimizer = Optimizer.model_validate({"lr": 3e-4, "min_lr": 2e-5, "schedule": schedule} | knobs)
    expected = megatrons(optimizer, total_steps=40, batch=batch)
    assert rates(optimizer, *range(45), total_steps=40) == pytest.approx(expected, rel=1e-12)
    assert len(set(expected)) > 1 or (schedule, knobs) == ("constant", {})


def test_warm_up_is_linear_from_nothing_and_reaches_the_rate_after_it() -> None:
    """Step 0 of 4 has none, step 4, the first after the warm-up, all of it: 0.4 / 4 each."""
    optimizer = Optimizer(lr=0.4, schedule="constant", warmup_steps=4)
    assert rates(optimizer, 0, 1, 2, 3, 4, 5) == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.4])


def test_a_share_of_a_step_is_no_warm_up() -> None:
    """Megatron would keep 0.4 of a step, and the only step of a run of one would have rate 0."""
    optimizer = Optimizer(lr=0.4, warmup_fraction=0.04)
    assert rates(optimizer, 0, total_steps=1) == rates(optimizer, 0, total_steps=10) == [0.4]
    assert rates(optimizer, 0, 1, total_steps=25) == [0.0, 0.4]


def test_cosine_falls_to_the_least_rate() -> None:
    """From step 2 to step 10: halfway, at 6, (0.5 + 0.1) / 2; a quarter in, at 4,
    0.1 + 0.4 x (1 + cos 45 degrees) / 2 = 0.1 + 0.4 x 0.853553."""
    optimizer = Optimizer(lr=0.5, min_lr=0.1, schedule="cosine", warmup_steps=2)
    expected = [0.5, 0.4414214, 0.3, 0.1585786, 0.1]
    assert rates(optimizer, 2, 4, 6, 8, 10) == pytest.approx(expected)


def test_linear_decay_loses_the_same_at_each_step() -> None:
    optimizer = Optimizer(lr=1.0, min_lr=0.2, schedule="linear", warmup_steps=2)
    assert rates(optimizer, 2, 3, 4, 6, 10) == pytest.approx([1.0, 0.9, 0.8, 0.6, 0.2])


def test_constant_stays_whatever_the_least_rate_and_the_end() -> None:
    optimizer = Optimizer(lr=0.3, min_lr=0.1, schedule="constant", warmup_steps=3, decay_steps=5)
    assert rates(optimizer, 0, 1, 2, 3, 7, 1000) == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.3, 0.3])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_decay_ends_at_decay_steps_and_not_at_the_last_step(schedule: str) -> None:
    optimizer = Optimizer.model_validate(
        {"lr": 1.0, "min_lr": 0.25, "schedule": schedule, "warmup_steps": 2, "decay_steps": 6}
    )
    assert rates(optimizer, 4, 6, 7, 100, total_steps=50) == pytest.approx(
        [0.625, 0.25, 0.25, 0.25]
    )


def test_a_run_that_is_all_warm_up_divides_by_nothing() -> None:
    optimizer = Optimizer(lr=1.0, warmup_steps=10)
    assert rates(optimizer, 9, 10, 11) == pytest.approx([0.9, 1.0, 0.0])
