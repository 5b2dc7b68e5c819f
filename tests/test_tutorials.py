"""docs/from-tutorials.md: what it sends people to is there."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import typer

from alignctl import cli
from alignctl.config.presets.load import STAGES
from alignctl.config.presets.problems import known_keys
from tests import tutorials

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "from-tutorials.md").read_text(encoding="utf-8")
NAMES = (ROOT / "tests" / "data" / "tutorials.txt").read_text(encoding="ascii").split()
"""Every name in the tutorials' text, as `python -m tests.tutorials FOLDER` read it out of them."""


def here() -> list[str]:
    """What stands between backticks in the second cells of the tables."""
    rows = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("|")]
    return [code for row in rows for code in re.findall(r"`([^`]+)`", "|".join(row[1:]))]


def test_every_name_in_the_tutorials_has_its_row() -> None:
    """Between backticks in a first cell, whole; a path has the names of its parts."""
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("|")]
    codes = [code for row in rows for code in re.findall(r"`([^`]+)`", row)]
    explained = {word for code in codes for word in re.findall(r"[\w.-]+", code)}
    assert len(NAMES) == 211
    assert [name for name in NAMES if name not in explained] == []


def test_every_row_says_something() -> None:
    rows = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith("|")]
    assert all(len(row) == 2 and row[1].strip() for row in rows)


def test_names_are_read_out_of_a_text() -> None:
    text = """
    Set `DATASET` and run `$HOME_DIR/tools/do_it.sh`, which 读取run.py and ${WORK}/x/a.json:
    export size=7B
    A=$1  # 8 ranks, MIN_LR
    rlhf:
        - policy,value
        lr: 1.0
    cp mp_rank_00/model.pt data.jsonl
    """
    expected = "A DATASET HOME_DIR MIN_LR WORK a.json do_it.sh lr model.pt mp_rank_00 rlhf run.py"
    assert tutorials.names(text) == {*expected.split(), "size"}


def test_every_key_exists() -> None:
    keys = {key for config in STAGES.values() for key in known_keys(config)}
    words = [word.partition("=")[0] for code in here() for word in code.split()]
    named = {word for word in words if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", word)}
    assert len(named) > 50
    assert named <= keys


def test_every_command_and_flag_exists() -> None:
    commands = _commands(typer.main.get_command(cli.app))
    flags = {
        option
        for command in commands.values()
        for each in (command, *_commands(command).values())
        for parameter in each.params
        for option in parameter.opts
    }
    words = [word for code in here() for word in code.split()]
    asked = {after for word, after in pairwise(words) if word == "alignctl"}
    assert asked <= set(commands)
    named = {word for word in words if word.startswith("--")}
    assert len(named) > 15
    assert named <= flags


def _commands(group: Any) -> dict[str, Any]:
    """The commands below one."""
    found: dict[str, Any] = getattr(group, "commands", {})
    return found
