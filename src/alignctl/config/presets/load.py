"""From a preset, flags and overrides to one validated, frozen configuration."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from alignctl.config.convert import ConvertOptions, Layout
from alignctl.config.on_policy_run import GRPOSettings, OnlineDPOSettings, RLHFSettings
from alignctl.config.presets import inheritance
from alignctl.config.presets import library as presets
from alignctl.config.presets.document import (
    Document,
    KeyPath,
    Origin,
    parse_value,
    shortened,
    shown,
)
from alignctl.config.presets.problems import (
    describe,
    did_you_mean,
    is_table,
    known_keys,
    refuse,
    sections_of,
)
from alignctl.config.pretrain import PretrainSettings
from alignctl.config.run import (
    DPOSettings,
    RewardSettings,
    RunConfig,
    SFTSettings,
    TrainingConfig,
)
from alignctl.config.sections import COUNTED, WARMUPS, Model, Section
from alignctl.config.stages import SECTIONS, load_class, section_of
from alignctl.errors import UserError

Config = TypeVar("Config", bound=RunConfig)
Options = TypeVar("Options", bound=Section)

FLAGS = {
    "load": "--load",
    "reward_load": "--reward-load",
    "reward_load_iteration": "--reward-load-iteration",
    "output": "--output",
    "tokenizer": "--tokenizer",
    "data.train": "--data",
    "data.validation": "--validation-data",
    "launch.nproc_per_node": "--nproc",
    "launch.max_restarts": "--max-restarts",
    "launch.nnodes": "--nnodes (or the environment's number of nodes)",
}
"""The flag that sets a key, for messages."""


class Preset(Section):
    """A preset file: one model, and what each stage does with it."""

    model: Model
    convert: Layout = Layout()
    pretrain: PretrainSettings | None = None
    sft: SFTSettings | None = None
    reward: RewardSettings | None = None
    dpo: DPOSettings | None = None
    rlhf: RLHFSettings | None = None
    online_dpo: OnlineDPOSettings | None = None
    grpo: GRPOSettings | None = None


STAGES = {section: load_class(section) for section in SECTIONS}
"""The sections of a preset that configure a run, with the configuration they become."""


def knob_names(section: str) -> list[str]:
    """List the knobs of a stage by their dotted keys, in the order of its configuration.

    Args:
        section: The stage, as a preset names it.
    """
    (settings,) = sections_of(Preset.model_fields[section].annotation)
    return list(_names_below(settings, ""))


def _names_below(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, info in model.model_fields.items():
        below = sections_of(info.annotation)
        if not below:
            yield f"{prefix}{name}"
        for each in below:
            yield from _names_below(each, f"{prefix}{name}.")


class PresetFile(Preset):
    """What a preset file may hold: it may extend others, and say once how all stages are laid out.

    `config.inheritance` makes a preset of it.
    """

    extends: str | list[str] | None = None
    """What this file builds on and differs from: a preset or recipe of ours by name, such as
    llama2-7b or recipes/llama2, a .yaml file by its path relative to this one, or a list of them,
    of which the last one wins."""

    layout: inheritance.StageLayout | None = None
    """What each stage is told unless its own section differs."""


def resolve(
    config_class: type[Config],
    preset: str,
    flags: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    text: str | None = None,
) -> Config:
    """Make the configuration of a stage: the preset, then the flags, then the overrides.

    Args:
        config_class: The stage's class, such as SFTConfig.
        preset: Name or path of a preset.
        flags: Dotted key to value, such as {"data.train": Path("rows.jsonl")}; None is skipped.
        overrides: `section.key=value`, relative to the stage's section of the preset.
        text: What the preset would hold, which then is no file; None: it is one.

    Raises:
        UserError: For anything the user got wrong; it names the file and line, or the override.
    """
    whole = inheritance.read(presets.find(preset), STAGES, text=text)
    return settle(whole, config_class, preset, flags, overrides)[0]


def settle(
    whole: Document,
    config_class: type[Config],
    preset: str,
    flags: Mapping[str, Any],
    overrides: Sequence[str],
) -> tuple[Config, dict[KeyPath, Origin]]:
    """Make the configuration of a stage from a preset that has been read, and say what is whence.

    Args:
        whole: The preset with all that it extends.
        config_class: As for `resolve`, as are the others.
        preset: Its name or path.
        flags: Dotted key to value.
        overrides: `section.key=value`.
    """
    path = presets.find(preset)
    for key in whole.tree:
        if key not in Preset.model_fields:
            guess = did_you_mean(key, PresetFile.model_fields)
            raise UserError(f"{whole.origins[(key,)].text}: unknown key {key!r}{guess}")
    document = _stage_document(whole, path, config_class, preset)
    for key, value in flags.items():
        if value is not None:
            _put(document, key, value, f"{FLAGS.get(key, key)} {value}")
    section = section_of(config_class.model_fields["stage"].default)
    problems = _apply(document, overrides, config_class, section) + _uncounted(document)
    config = _validated(config_class, document, path, problems)
    if config is None or problems:
        raise refuse(problems)
    return config, document.origins


def _validated(
    config_class: type[Config], document: Document, path: Path, problems: list[str]
) -> Config | None:
    """Make the configuration that a document describes; add to `problems` if it has any."""
    try:
        return config_class.model_validate(document.tree)
    except ValidationError as error:
        problems += describe(error, config_class, document.origins, Origin(shown(path)))
        return None


def load_preset(name_or_file: str) -> Preset:
    """Read a preset, and check each of its stages as a run would check it.

    Raises:
        UserError: With every problem of the file.
    """
    return check_preset(read_preset(name_or_file), name_or_file)


def read_preset(name_or_file: str) -> Document:
    """Read a preset with all that it extends, unchecked but for what ties the files together."""
    return inheritance.read(presets.find(name_or_file), STAGES)


def check_preset(whole: Document, name_or_file: str) -> Preset:
    """Check a preset that has been read, and each of its stages as a run would."""
    path = presets.find(name_or_file)
    problems: list[str] = []
    preset, wrong = None, set()
    try:
        preset = Preset.model_validate(whole.tree)
    except ValidationError as error:
        problems = describe(error, PresetFile, whole.origins, Origin(shown(path)))
        wrong = {detail["loc"][0] for detail in error.errors() if detail["loc"]}
    for stage, config_class in STAGES.items():
        if whole.tree.get(stage) is not None and stage not in wrong:
            part = _stage_document(whole, path, config_class, name_or_file)
            part.tree["output"] = Path("runs")
            _validated(config_class, part, path, problems)
    if preset is None or problems:
        raise refuse(list(dict.fromkeys(problems)))
    return preset


def convert_options(
    preset_name: str | None, *, tp: int | None = None, pp: int | None = None, **flags: Any
) -> ConvertOptions:
    """Make the options of a conversion: the flags, and what the preset says where there is none.

    Args:
        preset_name: Name or path of a preset, or None to rely on the folder that is read.
        tp: --tp, or None for the preset's.
        pp: --pp, or None for the preset's.
        **flags: The other fields of ConvertOptions.

    Raises:
        UserError: When the preset is wrong, or the model cannot be cut that way.
    """
    preset = load_preset(preset_name) if preset_name else None
    layout = preset.convert if preset else Layout()
    options = {
        **flags,
        "tp": tp or layout.tp,
        "pp": pp or layout.pp,
        "model": preset.model if preset else None,
    }
    try:
        return ConvertOptions.model_validate(options)
    except ValidationError as error:
        origin = Origin(f"preset {preset_name}" if preset_name else "flags")
        raise refuse(describe(error, ConvertOptions, {}, origin)) from error


def options(
    options_class: type[Options], flags: Mapping[str, Any], overrides: Sequence[str]
) -> Options:
    """Make the options of a command that trains nothing: its flags, and knobs as `key=value`.

    Args:
        options_class: Such as GenerateOptions.
        flags: Key to value; None is skipped. No override may set one of these keys.
        overrides: `key=value`.

    Raises:
        UserError: For anything the user got wrong; it names the flag or the override.
    """
    document = Document({}, {})
    for key, value in flags.items():
        if value is not None:
            _put(document, key, value, f"{FLAGS.get(key, f'--{key}')} {value}")
    typed = {each.partition("=")[0] for each in overrides}
    problems = [f"{key} is not a knob, but a flag: --{key}" for key in flags if key in typed]
    overrides = [each for each in overrides if each.partition("=")[0] not in flags]
    problems += _apply(document, overrides, options_class)
    try:
        found = options_class.model_validate(document.tree)
    except ValidationError as error:
        problems += describe(error, options_class, document.origins, Origin("options"))
    if problems:
        raise refuse(problems)
    return found


def resolve_all(name_or_file: str, overrides: Sequence[str]) -> dict[str, TrainingConfig]:
    """Make the configuration of each stage for which a preset has a section, by that section.

    Args:
        name_or_file: Name or path of the preset.
        overrides: `section.key=value`, relative to a stage's section, for all that have such a key.
    """
    whole = read_preset(name_or_file)
    settled = settle_all(whole, check_preset(whole, name_or_file), name_or_file, overrides)
    return {stage: config for stage, (config, _) in settled.items()}


def settle_all(
    whole: Document, preset: Preset, name_or_file: str, overrides: Sequence[str]
) -> dict[str, tuple[TrainingConfig, dict[KeyPath, Origin]]]:
    """Do as `resolve_all` with a preset already read and checked; add the origins of keys."""
    present = {stage: known_keys(STAGES[stage]) for stage in STAGES if getattr(preset, stage)}
    settled = {}
    for stage, known in present.items():
        others = {key for other, keys in present.items() if other != stage for key in keys}
        elsewhere = others - set(known)
        mine = [each for each in overrides if each.partition("=")[0] not in elsewhere]
        output = {"output": Path("runs")}
        settled[stage] = settle(whole, STAGES[stage], name_or_file, output, mine)
    return settled


def _stage_document(
    whole: Document, path: Path, config_class: type[RunConfig], preset: str
) -> Document:
    """Take the part of a preset that a stage reads: the model, and its own section at the top."""
    stage = config_class.model_fields["stage"].default
    section = section_of(stage)
    settings = whole.tree.get(section)
    if not isinstance(settings, dict):
        raise UserError(f"{shown(path)} has no section {section!r}, which alignctl {stage} needs")
    tree: dict[str, Any] = {"stage": stage, "preset": preset, **deepcopy(settings)}
    origins = inheritance.part(whole, section).origins
    if "model" in whole.tree:
        tree["model"] = deepcopy(whole.tree["model"])
        origins |= {at: origin for at, origin in whole.origins.items() if at[0] == "model"}
    return Document(tree, origins)


def _apply(
    document: Document,
    overrides: Sequence[str],
    config_class: type[BaseModel],
    section: str | None = None,
) -> list[str]:
    """Put the overrides into the document; return what is wrong with them."""
    problems = []
    known = known_keys(config_class)
    for override in overrides:
        key, equals, text = override.partition("=")
        source = f"override {shortened(override)}"
        if not equals:
            problems.append(f"{source} is not of the form section.key=value")
        elif section and key.startswith(f"{section}."):
            problems.append(
                f"{source}: keys are relative to the stage; "
                f"did you mean {override.removeprefix(f'{section}.')!r}?"
            )
        elif key not in known:
            problems.append(f"{source}: unknown key {key!r}{did_you_mean(key, known)}")
        elif key in ("stage", "preset"):
            problems.append(f"{source}: {key} is not a knob")
        else:
            try:
                may_be_mapping = is_table(config_class, key)
                value = parse_value(text, source, may_be_mapping=may_be_mapping)
                _put(document, key, value, source)
            except UserError as error:
                problems.append(f"{error.message} ({error.hint})" if error.hint else error.message)
    return problems


def _put(document: Document, key: str, value: Any, source: str) -> None:
    """Set a dotted key that is known to exist; a section that is no mapping is left as it is.

    Of the knobs that say how long a warm-up is, one takes the place of the preset's; so does
    micro_batch_size of its micro_batch_tokens.
    """
    *sections, last = key.split(".")
    place = document.tree
    for section in sections:
        if place.get(section) is None:  # also a section that is off: it is turned on
            place[section] = {}
        place = place[section]
        if not isinstance(place, dict):
            return
    others: set[str] = set()
    if last in WARMUPS:
        others = set(WARMUPS) - {last}
    elif last == "micro_batch_size":
        others = {"micro_batch_tokens"}
    for other in others if value is not None else ():
        if not _is_typed(document, (*sections, other)):
            place.pop(other, None)
    place[last] = value
    document.origins[tuple(key.split("."))] = Origin(source, is_command_line=True)


def _is_typed(document: Document, at: KeyPath) -> bool:
    """Tell whether a key was given on the command line."""
    origin = document.origins.get(at)
    return origin is not None and origin.is_command_line


def _uncounted(document: Document) -> list[str]:
    """List what was typed and has no effect, because a micro batch is limited by its tokens."""
    batch = document.tree.get("batch")
    tokens = batch.get("micro_batch_tokens") if isinstance(batch, dict) else None
    if tokens is None:
        return []
    return [
        f"{document.origins[at].text} has no effect beside batch.micro_batch_tokens {tokens}, "
        "which takes its place: leave one out (batch.micro_batch_tokens=null unsets)"
        for at in COUNTED
        if _is_typed(document, at)
    ]
