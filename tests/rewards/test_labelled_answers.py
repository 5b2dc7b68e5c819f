"""The labelled table of answers: no false positive, and hardly a false negative."""

import tomllib
from pathlib import Path

import pytest

from alignctl.rewards.math_rule import math_rule

TABLE = tomllib.loads((Path(__file__).parent / "labelled_answers.toml").read_text("utf-8"))


@pytest.mark.parametrize("name", TABLE)
def test_every_answer_is_judged_as_it_is_labelled(name: str) -> None:
    others = [
        (completion, reference, reason)
        for completion, reference, is_right in TABLE[name]
        if ((reason := math_rule(completion, reference)) == "correct") != is_right
    ]
    assert not others


def test_the_table_is_large_and_no_row_is_in_it_twice() -> None:
    rows = [(completion, reference) for name in TABLE for completion, reference, _ in TABLE[name]]
    assert len(rows) == len({*rows})
    assert len(rows) >= 400
    assert sum(is_right for name in TABLE for *_, is_right in TABLE[name]) >= 200
