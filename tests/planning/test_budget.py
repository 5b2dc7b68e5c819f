"""A budget of tokens is planned as micro batches of answers that fill it."""

from pathlib import Path

import pytest

from alignctl.config.on_policy_run import GRPOConfig, OnlineDPOConfig, OnPolicyConfig, RLHFConfig
from alignctl.config.presets.load import resolve
from alignctl.planning.budget import counted
from alignctl.planning.devices import device
from alignctl.planning.job import tokens_of_batch
from alignctl.planning.layouts import fitting, look_at


def run(stage: type[OnPolicyConfig], *overrides: str) -> OnPolicyConfig:
    return resolve(stage, "llama2-7b", {"output": Path("runs")}, overrides)


@pytest.mark.parametrize("stage", [RLHFConfig, OnlineDPOConfig, GRPOConfig])
@pytest.mark.parametrize("budget", [6000, 8192, 12000])
def test_the_worst_batches_fill_the_budget(stage: type[OnPolicyConfig], budget: int) -> None:
    """Up to a hundredth, as tokens are whole; without prompts nearly all of it has logits.

    Where an update takes answers to any prompts, nothing is shared: whole long ones leave a rest.
    """
    longest, learned = map(
        tokens_of_batch, counted(run(stage, f"batch.micro_batch_tokens={budget}"))
    )
    assert 0.85 * budget < longest.total <= budget
    assert 0.99 * budget < learned.total <= budget
    assert learned.learned > 0.98 * budget


def test_a_run_by_number_is_planned_as_it_is() -> None:
    config = run(GRPOConfig)
    assert counted(config) == (config,)


def test_layouts_are_planned_by_their_budgets() -> None:
    """Multiples of the longest prompt and answer; pasted, they give what was planned."""
    config, gpu = run(RLHFConfig, "batch.micro_batch_tokens=8192"), device("h100")
    plans = fitting(config, gpu, gpus=8, gpu_memory_gib=80)
    assert plans
    for plan in plans[:2]:
        assert plan.row()["micro_batch_tokens"] % config.longest_answer == 0
        pasted = run(RLHFConfig, *plan.overrides)
        assert look_at(pasted, gpu, 80).row() == plan.row()
