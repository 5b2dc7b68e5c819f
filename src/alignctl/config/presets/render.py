"""A preset written as one whole, every default filled in, with where each value comes from."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from alignctl.config.presets import library as presets
from alignctl.config.presets.document import KeyPath, Origin, parse_value, shown
from alignctl.config.presets.load import STAGES, check_preset, read_preset, settle_all
from alignctl.errors import UserError


def render_preset(
    name_or_file: str,
    overrides: Sequence[str],
    *,
    stage: str | None = None,
    as_json: bool = False,
) -> str:
    """Write a preset with every default and override filled in: itself a valid preset.

    Args:
        name_or_file: Name or path of the preset.
        overrides: `section.key=value`, relative to a stage's section, for all that have such a key.
        stage: The only section of a stage to write; None: those of all stages.
        as_json: JSON instead of YAML, in which comments say where each value comes from.
    """
    whole = read_preset(name_or_file)
    preset = check_preset(whole, name_or_file)
    if stage is not None and getattr(preset, stage) is None:
        raise UserError(f"{name_or_file} has no section {stage!r}")
    tree = preset.model_dump(mode="json", exclude=set(STAGES))
    origins = {at: origin for at, origin in whole.origins.items() if at[0] not in STAGES}
    settled = settle_all(whole, preset, name_or_file, overrides)
    for section, (config, found) in settled.items():
        if stage not in (None, section):
            continue
        document = config.model_dump(mode="json")
        tree["model"] = document["model"]
        tree[section] = {key: document[key] for key in type(getattr(preset, section)).model_fields}
        for at, origin in found.items():
            origins[at if at[0] == "model" else (section, *at)] = origin
    return json.dumps(tree, indent=2) if as_json else "\n".join(_lines(tree, origins, ()))


def _lines(
    tree: Mapping[str, Any],
    origins: Mapping[KeyPath, Origin],
    path: KeyPath,
    typed: Origin | None = None,
) -> Iterator[str]:
    """Yield lines of YAML; after each value its file and line, or that it is the default.

    Args:
        tree: What to write.
        origins: Where keys were written.
        path: The way to the tree.
        typed: The override that set the whole tree, which is then a table and no section.
    """
    indent = "  " * len(path)
    for key, value in tree.items():
        origin = origins.get((*path, key), typed)
        if isinstance(value, dict) and value:
            yield f"{indent}{_word(key)}:"
            is_typed = origin is not None and origin.is_command_line
            yield from _lines(value, origins, (*path, key), origin if is_typed else None)
        else:
            yield f"{indent}{_word(key)}: {_word(value)} # {_short(origin)}"


def _word(value: Any) -> str:
    """Write a value on one line. PyYAML quotes as YAML 1.1 needs it, so 1e5 has no quotes."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    text = text.removesuffix("\n").removesuffix("\n...")
    if isinstance(value, str | list) and parse_value(text, "a value") != value:
        return json.dumps(value)
    return text


def _short(origin: Origin | None) -> str:
    """Write where a value was written; of our own files the name alone."""
    if origin is None:
        return "default"
    text = origin.text.removeprefix(f"{shown(presets.folder())}/")
    return " ".join(text.split())  # a name of a file may hold what ends a comment
