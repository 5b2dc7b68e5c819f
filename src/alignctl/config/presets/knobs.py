"""The page of knobs, docs/knobs.md: for every stage each key, its values, default and meaning."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from alignctl.config.convert import ConvertOptions
from alignctl.config.generation import (
    GenerateOptions,
    HarnessOptions,
    MathOptions,
    PairOptions,
    WinOptions,
)
from alignctl.config.presets.load import Preset
from alignctl.config.presets.problems import items_of, sections_of
from alignctl.config.presets.schema import describe_fields
from alignctl.config.stages import NAMES as TRAINING

COMMANDS: dict[str, type[BaseModel]] = {
    "convert-*": ConvertOptions,
    "generate": GenerateOptions,
    "eval math": MathOptions,
    "eval preference": WinOptions,
    "eval preference, without --baseline": PairOptions,
    "eval lm-eval": HarnessOptions,
}
"""What has no section of its own in a preset, with the class that holds its keys."""

_ELSEWHERE = ("model",)
"""Keys of these commands that a preset's own section explains."""

_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "over",
    "maximum": "at most",
    "exclusiveMaximum": "under",
}

_PREFACE = """\
# Knobs

Written by `alignctl presets knobs`; a test compares it with the classes in `src/alignctl/config/`,
whose text below each field it is. `section.key=value` on the command line sets a knob of a stage,
and a preset sets it below the stage's name; `alignctl presets show NAME` tells what a preset gives
it. Where those values come from is said in the presets. For `convert-*`, `generate` and `eval`,
paths and models are flags, the other keys are `key=value`.
"""


@dataclass
class Chapter:
    """The knobs that one class declares at one place, and the stages that have them.

    Attributes:
        declared: The class.
        path: Names of the sections that lead to it, without the stage's.
        stages: Subcommands, in the order of a preset.
        knobs: Its keys; which ones, may differ from stage to stage by what a subclass redeclares.
    """

    declared: type[BaseModel]
    path: tuple[str, ...]
    stages: list[str] = field(default_factory=list)
    knobs: dict[str, str] = field(default_factory=dict)


def render_knobs() -> str:
    """Render the page, as Markdown in ASCII."""
    return "\n".join([_PREFACE, *(_render(chapter) for chapter in gather_chapters())])


def gather_chapters() -> list[Chapter]:
    """Gather the knobs of all stages, those that stages share once."""
    chapters: dict[tuple[type[BaseModel], tuple[str, ...]], Chapter] = {}
    for stage, model in _roots():
        for declared, path, key, row in _walk(model, ()):
            chapter = chapters.setdefault((declared, path), Chapter(declared, path))
            if stage not in chapter.stages:
                chapter.stages.append(stage)
            chapter.knobs[key] = row
    return list(chapters.values())


def _roots() -> Iterator[tuple[str, type[BaseModel]]]:
    for name, info in Preset.model_fields.items():
        for model in sections_of(info.annotation):
            yield name.replace("_", "-"), model
    yield from COMMANDS.items()


def _walk(
    model: type[BaseModel], path: tuple[str, ...]
) -> Iterator[tuple[type[BaseModel], tuple[str, ...], str, str]]:
    """Yield for each knob below `model` its class, its path, its key and its row of the table."""
    texts = describe_fields(model)
    schemas = model.model_json_schema()["properties"]
    for name, info in model.model_fields.items():
        sections = list(sections_of(info.annotation))
        if sections and name in _ELSEWHERE:
            continue
        for section in (*sections, *items_of(info.annotation)):
            yield from _walk(section, (*path, name))
        if not sections or schemas[name].get("default", ...) is None:
            declared = next(each for each in model.__mro__ if name in each.__annotations__)
            yield declared, path, name, _row(name, schemas[name], texts[name])


def _row(name: str, schema: Mapping[str, Any], text: str) -> str:
    default = f"`{json.dumps(schema['default'])}`" if "default" in schema else "must be set"
    cells = (f"`{name}`", describe_values(schema), default, " ".join(text.split()))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def describe_values(schema: Mapping[str, Any]) -> str:
    """Describe in words what values a key may have.

    Args:
        schema: Its JSON schema.
    """
    if "anyOf" in schema:
        return " or ".join(describe_values(each) for each in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value).strip(chr(34))}`" for value in schema["enum"])
    if "$ref" in schema:
        return "a section"
    bounds = " and ".join(
        f"{word} {schema[bound]:.16g}" for bound, word in _BOUNDS.items() if bound in schema
    )
    return " ".join(part for part in (_kind(schema), bounds) if part)


def _kind(schema: Mapping[str, Any]) -> str:
    match schema["type"]:
        case "array":
            return f"a list, each {describe_values(schema['items'])}"
        case "object":
            return f"a mapping, each value {describe_values(schema['additionalProperties'])}"
        case "string":
            return "a path" if schema.get("format") == "path" else "text"
        case "boolean":
            return "`true` or `false`"
        case "null":
            return "`null`"
        case kind:
            return {"integer": "an integer", "number": "a number"}[kind]


def _render(chapter: Chapter) -> str:
    stages = ", ".join(f"`{stage}`" for stage in chapter.stages)
    if tuple(chapter.stages) == TRAINING:
        stages = "every stage that trains"
    place = f"`{'.'.join(chapter.path)}` of " if chapter.path else ""
    heading = f"{place}{stages}"
    return "\n".join(
        [
            f"## {heading[0].upper()}{heading[1:]}",
            "",
            f"`{chapter.declared.__module__}.{chapter.declared.__name__}`",
            "",
            "| key | values | default | meaning |",
            "|---|---|---|---|",
            *chapter.knobs.values(),
            "",
        ]
    )
