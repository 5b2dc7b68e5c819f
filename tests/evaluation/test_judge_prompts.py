import json
from pathlib import Path

import pytest

from alignctl.errors import UserError
from alignctl.evaluation.mt_bench.judge_prompts import Mode, load_templates, render
from alignctl.evaluation.mt_bench.questions import PROMPTS, find_bundled
from tests.evaluation.texts import question, write_rows

# Texts that a careless template engine would take for its own.
NASTY = ("{question} {0} {{}} [[10]]", "{answer_1.__class__} %s \\1 \\g<0> \ud800")


@pytest.mark.parametrize("mode", ["single", "pairwise"])
@pytest.mark.parametrize("category", ["writing", "math"])
@pytest.mark.parametrize("turn", [1, 2])
def test_prompts_are_those_that_fastchat_would_send(mode: Mode, category: str, turn: int) -> None:
    """FastChat fills the same file with `str.format`."""
    found = question(7, category, ("Why {so}?", "And {then}?"))
    answers = [("one", "two"), ("eins", "zwei")][: 1 if mode == "single" else 2]
    ours = render(load_templates(find_bundled(PROMPTS), mode), mode, found, turn, answers)
    rows = [json.loads(line) for line in find_bundled(PROMPTS).read_text("utf-8").splitlines()]
    theirs = next(row for row in rows if row["name"] == ours.template)
    values = {
        "question": found.turns[0],
        **{f"question_{n}": found.turns[n - 1] for n in (1, 2)},
        **{f"ref_answer_{n}": ("Right.", "Right too.")[n - 1] for n in (1, 2)},
        **{f"answer_{n}": answers[0][n - 1] for n in (1, 2)},
        **{f"answer_a_{n}": answers[0][n - 1] for n in (1, 2)},
        **{f"answer_b_{n}": answers[-1][n - 1] for n in (1, 2)},
        **{"answer": answers[0][0], "answer_a": answers[0][0], "answer_b": answers[-1][0]},
    }
    assert ours.user == theirs["prompt_template"].format(**values)
    assert ours.system == theirs["system_prompt"]
    assert ("math" in ours.template) == (category == "math")
    assert ours.template.endswith("-multi-turn") == (turn == 2)
    assert [message["role"] for message in ours.messages] == ["system", "user"]


def test_texts_are_put_in_as_they_are() -> None:
    templates = load_templates(find_bundled(PROMPTS), "single")
    prompt = render(templates, "single", question(1), 2, [NASTY])
    assert NASTY[0] in prompt.user
    assert NASTY[1].replace("\ud800", "?") in prompt.user


def test_a_missing_template_is_named(tmp_path: Path) -> None:
    row = {"name": "single-v1", "system_prompt": "", "prompt_template": ""}
    file = write_rows(tmp_path / "prompts.jsonl", [row])
    with pytest.raises(UserError, match="no judge prompt named single-v1-multi-turn, single-math"):
        load_templates(file, "single")


def test_a_row_that_is_no_template_is_named(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "prompts.jsonl", [{"name": "single-v1"}])
    with pytest.raises(UserError, match=r"prompts\.jsonl:1: not a judge prompt"):
        load_templates(file, "single")


def test_a_name_in_braces_that_nothing_has_is_named(tmp_path: Path) -> None:
    names = ("single-v1", "single-v1-multi-turn", "single-math-v1", "single-math-v1-multi-turn")
    rows = [{"name": n, "system_prompt": "", "prompt_template": "{anwser}"} for n in names]
    templates = load_templates(write_rows(tmp_path / "prompts.jsonl", rows), "single")
    with pytest.raises(UserError, match=r"'single-v1': nothing .* name \{anwser\}"):
        render(templates, "single", question(1), 1, [("one", "two")])
