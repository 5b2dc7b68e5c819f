import pytest

from alignctl.algorithms.schedule import learning_rate
from alignctl.config.sections import Optimizer


def rates(optimizer: Optimizer, *steps: int, total_steps: int = 10) -> list[float]:
    return [learning_rate(step, optimizer, total_steps=total_steps) for step in steps]


def test_warm_up_is_linear_and_reaches_the_rate_at_its_end() -> None:
    """Step 0 of 4 has a quarter; step 4, the first after the warm-up, has all of it."""
    optimizer = Optimizer(lr=0.4, schedule="linear", warmup_steps=4)
    assert rates(optimizer, 0, 1, 2, 3, 4) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])


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
    assert rates(optimizer, 0, 1, 2, 3, 7, 1000) == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.3, 0.3])


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
    assert rates(optimizer, 9, 10, 11) == pytest.approx([1.0, 1.0, 0.0])
