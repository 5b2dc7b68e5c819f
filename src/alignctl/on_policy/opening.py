"""The models that an on-policy run starts from, beside its policy."""

from alignctl.checkpoints.source import Source, find
from alignctl.config.on_policy_run import OnPolicyConfig, RLHFConfig


def open_reward(config: OnPolicyConfig) -> Source:
    """The reward model, of the iteration that was asked for."""
    assert config.reward_load is not None
    path = config.reward_load
    if config.reward_load_iteration is not None:
        name = f"iter_{config.reward_load_iteration:07d}"
        path = path / "checkpoints" / name if (path / "checkpoints").is_dir() else path / name
    return find(path)


def open_value(config: RLHFConfig) -> Source:
    """What the value model starts from."""
    return find(config.value.load) if config.value.load is not None else open_reward(config)
