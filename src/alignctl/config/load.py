"""From a preset, flags and overrides to one validated, frozen configuration."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from alignctl.config import presets
from alignctl.config.run import RunConfig
from alignctl.errors import UserError

Config = TypeVar("Config", bound=RunConfig)


def resolve(
    config_class: type[Config],
    preset: str,
    flags: Mapping[str, Any],
    overrides: Sequence[str] = (),
) -> Config:
    """The configuration of a stage: the preset, then the flags, then the overrides.

    Args:
        config_class: The stage's class, such as SFTConfig.
        preset: Name or path of a preset.
        flags: Dotted key to value, such as {"data.train": Path("rows.jsonl")}; None is skipped.
        overrides: `section.key=value`, relative to the stage's section of the preset.

    Raises:
        UserError: For anything the user got wrong; it names the file and line, or the override.
    """
    stage = config_class.model_fields["stage"].default
    tree = yaml.safe_load(presets.find(preset).read_text())
    document = {"stage": stage, "preset": preset, "model": tree["model"], **tree[stage]}
    texts = {key: value for key, value in flags.items() if value is not None}
    for override in overrides:
        key, _, text = override.partition("=")
        texts[key] = yaml.safe_load(text)
    for key, value in texts.items():
        *sections, last = key.split(".")
        place = document
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    try:
        return config_class.model_validate(document)
    except ValidationError as error:
        raise UserError(str(error)) from error
