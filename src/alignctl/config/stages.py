"""Which stages there are: the sections of a preset that configure a run."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alignctl.config.run import TrainingConfig

SECTIONS = {
    "pretrain": "alignctl.config.pretrain:PretrainConfig",
    "sft": "alignctl.config.run:SFTConfig",
    "reward": "alignctl.config.run:RewardConfig",
    "dpo": "alignctl.config.run:DPOConfig",
    "rlhf": "alignctl.config.on_policy_run:RLHFConfig",
    "online_dpo": "alignctl.config.on_policy_run:OnlineDPOConfig",
    "grpo": "alignctl.config.on_policy_run:GRPOConfig",
}
"""The sections, in the order in which stages follow each other, with the class that each becomes.

A class is named, not imported: `alignctl --help` is answered without it.
"""

NAMES = tuple(section.replace("_", "-") for section in SECTIONS)
"""The subcommands of the stages."""


def section_of(stage: str) -> str:
    """Return the section of a preset for a subcommand, which is also the name of its module."""
    return stage.replace("-", "_")


def load_class(section: str) -> "type[TrainingConfig]":
    """Import the class that a section becomes."""
    module, name = SECTIONS[section].split(":")
    found: type[TrainingConfig] = getattr(import_module(module), name)
    return found
