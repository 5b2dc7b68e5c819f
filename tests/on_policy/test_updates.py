"""The optimizer steps of an episode: every pass takes everything once."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignctl.config.on_policy_run import GRPOConfig
from alignctl.config.sections import Optimizer
from alignctl.engines.metrics import StepMetrics
from alignctl.engines.protocol import NonFiniteError
from alignctl.errors import RunError
from alignctl.on_policy.updates import name_policy_metrics, split_passes, update
from tests.on_policy import scripted

OPTIMIZER = Optimizer(lr=1.0, schedule="constant", warmup_steps=4)


def config(batch: int, epochs: int, seed: int) -> GRPOConfig:
    made = scripted.config(Path("unused"))
    return made.model_copy(
        update={
            "batch": made.batch.model_copy(update={"global_batch_size": batch}),
            "experience": made.experience.model_copy(update={"epochs": epochs}),
            "train": made.train.model_copy(update={"seed": seed}),
        }
    )


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 3), st.integers(0, 5))
def test_a_pass_takes_everything_once(size: int, batch: int, epochs: int, step: int) -> None:
    """In parts of the batch size, but for the last; the same again for the same episode."""
    found = split_passes(config(batch, epochs, 1), size, step=step)
    assert len(found) == epochs
    for each in found:
        assert sorted(number for part in each for number in part) == list(range(size))
        assert [len(part) for part in each[:-1]] == [batch] * (len(each) - 1)
        assert 0 < len(each[-1]) <= batch
    assert split_passes(config(batch, epochs, 1), size, step=step) == found


def test_every_pass_and_every_episode_has_an_order_of_its_own() -> None:
    orders = [
        tuple(number for part in each for number in part)
        for seed in (1, 2)
        for step in range(3)
        for each in split_passes(config(8, 3, seed), 40, step=step)
    ]
    assert len(set(orders)) == len(orders) == 18


class ScriptedEngine:
    """Says of each step what a test wrote down; one without a norm was left out."""

    def __init__(
        self, *results: StepMetrics | NonFiniteError, loss_scale: float | None = None
    ) -> None:
        self.results, self.rates = list(results), list[float]()
        self.loss_scale, self.skipped_steps = loss_scale, 0

    def train_step(
        self, batches: Any, loss: Any, *, learning_rate: float, segments: Any
    ) -> StepMetrics:
        self.rates.append(learning_rate)
        result = self.results[len(self.rates) - 1]
        if isinstance(result, NonFiniteError):
            raise result
        self.skipped_steps += result.grad_norm is None
        return result


def result(loss: float, weight: float, kl: float, norm: float | None = 1.0) -> StepMetrics:
    return StepMetrics(
        loss=loss,
        weight=weight,
        num_tokens=5,
        num_computed_tokens=3,
        metrics={"approx_kl": kl, "kl": 2 * kl},
        grad_norm=norm,
        is_stop_requested=False,
    )


def updated(engine: ScriptedEngine, count: int, **settings: Any) -> dict[str, float]:
    some: Any = engine
    unused: Any = None
    parts: Any = [[1, 2, 3]] * count  # three micro batches each
    return update(some, OPTIMIZER, unused, parts, first=2, total=100, **settings).metrics


def test_metrics_are_means_by_weight_and_rates_follow_the_updates_of_the_run() -> None:
    """(2 x 1 + 4 x 3) / 4 = 3.5; updates 3 and 4 of a warm-up of 4: 2/4 and 3/4."""
    engine = ScriptedEngine(result(2, 1, 0.0, norm=1), result(4, 3, 0.1, norm=2))
    found = updated(engine, 2)
    assert found == pytest.approx(
        {
            **{"loss": 3.5, "approx_kl": 0.075, "kl": 0.15, "grad_norm": 1.5, "updates": 2},
            **{"trained_tokens": 10, "computed_tokens": 6, "micro_batches": 6},
        }
    )
    assert engine.rates == [0.5, 0.75]
    assert found.keys() - name_policy_metrics(found).keys() == {"kl"}


def test_an_update_that_float16_does_not_hold_counts_but_moves_no_rate() -> None:
    """Updates 3 and 5 of a warm-up of 4 are taken, the latter with the rate of the fourth."""
    engine = ScriptedEngine(
        result(1, 1, 0), result(1, 1, 0, norm=None), result(1, 1, 0, norm=3), loss_scale=512
    )
    found = updated(engine, 3)
    assert engine.rates == [0.5, 0.75, 0.75]
    assert found["grad_norm"] == 2
    assert (found["updates"], found["loss_scale"], found["skipped_steps"]) == (3, 512, 1)
    alone = updated(ScriptedEngine(result(1, 1, 0, norm=None), loss_scale=256), 1)
    assert "grad_norm" not in alone


def test_updates_beyond_the_allowed_kl_are_left_out() -> None:
    """The second has gone too far: it counts, and the third is not taken."""
    engine = ScriptedEngine(result(1, 1, 0.01), result(1, 1, 0.03), result(1, 1, 0.0))
    found = updated(engine, 3, max_kl=0.02)
    assert found["updates"] == len(engine.rates) == 2
    assert found["micro_batches"] == 6


def test_an_update_that_is_not_finite_names_its_number() -> None:
    engine = ScriptedEngine(result(1, 1, 0), NonFiniteError("the loss is nan"))
    with pytest.raises(RunError, match="update 4: the loss is nan; no weight was changed by it"):
        updated(engine, 2)
