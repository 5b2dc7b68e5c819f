"""What holds of every stage, and of every command."""

import inspect
from importlib import import_module

import pytest
import typer

from alignctl.cli import Root, app
from alignctl.cli.lazy import LazyGroup, summarize
from alignctl.config.presets.load import STAGES, Preset
from alignctl.config.stages import NAMES, SECTIONS, section_of
from alignctl.stages.shared.stage import load_stage


def test_each_section_of_a_preset_is_a_stage() -> None:
    assert list(SECTIONS) == [name for name in Preset.model_fields if name in STAGES]
    assert [load_stage(name).config for name in NAMES] == list(STAGES.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_stage_is_one_value(name: str) -> None:
    stage = load_stage(name)
    assert (stage.name, stage.config.model_fields["stage"].default) == (name, name)
    assert import_module(stage.module).STAGE is stage
    assert (stage.loss is None) != (stage.learner is None)
    assert (stage.learner is None) == (stage.rows != "prompts")


@pytest.mark.parametrize("name", NAMES)
def test_every_input_is_a_key_of_the_configuration(name: str) -> None:
    """Its flag is the parameter of the command; where there is none, the key is an override."""
    stage = load_stage(name)
    for each in stage.inputs:
        section, _, key = each.key.rpartition(".")
        model = stage.config
        if section:
            annotation = stage.config.model_fields[section].annotation
            assert isinstance(annotation, type)
            model = annotation
        assert key in model.model_fields
        assert each.flag.startswith("--") == bool(each.help)


def commands(group: LazyGroup) -> list[tuple[str, str, object]]:
    """Name, module and command of all commands below a group."""
    found = []
    for chapter in group.chapters.values():
        for name, module in chapter.items():
            command = group.commands[name]
            found.append((name, module, command))
            if isinstance(command, LazyGroup):
                found += commands(command)
    return found


def test_a_command_is_listed_with_the_first_line_of_its_own_help() -> None:
    root = typer.main.get_command(app)
    assert isinstance(root, Root)
    found = commands(root)
    assert len(found) > 25
    for name, module, command in found:
        assert getattr(command, "name") == name  # noqa: B009
        help_text = inspect.cleandoc(getattr(command, "help"))  # noqa: B009
        assert summarize(module) == help_text.splitlines()[0]


def test_sections_have_the_names_of_their_commands() -> None:
    assert [section_of(name) for name in NAMES] == list(SECTIONS)
