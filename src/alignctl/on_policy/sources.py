"""Finds the models that an on-policy run starts from, beside its policy."""

from pathlib import Path

from alignctl.checkpoints.find import find
from alignctl.checkpoints.source import Source
from alignctl.config.on_policy_run import OnPolicyConfig
from alignctl.errors import UserError
from alignctl.run_folder import checkpoint_at


def open_reward(config: OnPolicyConfig) -> Source:
    """Find the reward model, of the iteration that was asked for.

    Raises:
        UserError: It is no model, or has no such iteration, or is one checkpoint already.
    """
    assert config.reward_load is not None
    if config.reward_load_iteration is None:
        return find(config.reward_load)
    return find(_checkpoint(config.reward_load, config.reward_load_iteration))


def open_value(config: OnPolicyConfig) -> Source:
    """Find the model that the value model starts from: by default the reward model."""
    path = config.value_load
    return open_reward(config) if path is None else find(path)


def _checkpoint(path: Path, iteration: int) -> Path:
    """Find one checkpoint of a run folder, or of a folder of checkpoints."""
    if checkpoint_at(path) != path or path.name.startswith("iter_"):
        raise UserError(
            f"--reward-load {path} with --reward-load-iteration {iteration}: two ways to say which "
            "checkpoint",
            "leave one out: --reward-load RUN@best and RUN@iter_100 name a checkpoint themselves",
        )
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    checkpoint = folder / f"iter_{iteration:07d}"
    if not checkpoint.is_dir():
        names = [each.name.removeprefix("iter_") for each in folder.glob("iter_*") if each.is_dir()]
        there = sorted(int(name) for name in names if name.isdecimal())
        raise UserError(
            f"--reward-load-iteration {iteration}: there is no {checkpoint}",
            f"the iterations that are there: {', '.join(map(str, there))}"
            if there
            else f"{folder} holds no checkpoints by iteration: leave the flag out",
        )
    return checkpoint
