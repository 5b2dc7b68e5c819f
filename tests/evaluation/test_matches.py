import ast
import glob
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from alignctl.evaluation.mt_bench.fastchat_answers import write_answers
from alignctl.evaluation.mt_bench.judge import Answers as Judged
from alignctl.evaluation.mt_bench.judge_endpoint import Endpoint
from alignctl.evaluation.mt_bench.judge_prompts import Mode, load_templates
from alignctl.evaluation.mt_bench.matches import (
    Match,
    Result,
    matches,
    pairwise_result,
    single_result,
    write_result,
)
from alignctl.evaluation.mt_bench.questions import PROMPTS, QuestionId, find_bundled
from alignctl.evaluation.mt_bench.replies import Reply
from tests.evaluation.texts import question

JUDGE = Endpoint("some/judge", "http://localhost/v1", "none")
QUESTIONS = [question(1, "writing"), question(2, "math")]
ANSWERS: dict[str, dict[QuestionId, list[str]]] = {
    "sft": {1: ["a", "b"], 2: ["c", "d"]},
    "dpo": {1: ["e", "f"], 2: ["g", "h"]},
}
COUNTS: dict[str, Any] = {"finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 1}


def asked(mode: Mode) -> list[Match]:
    return matches(mode, QUESTIONS, ANSWERS, load_templates(find_bundled(PROMPTS), mode))


def judged(found: Sequence[Match], said: Sequence[str | None]) -> Judged:
    """Replies to all prompts in their order; None: it was refused."""
    prompts = [prompt for match in found for prompt in match.prompts]
    assert len(prompts) == len(said)
    replies = {
        JUDGE.name_of(prompt): Reply(text=text, time=7.0, **COUNTS)
        for prompt, text in zip(prompts, said, strict=True)
        if text is not None
    }
    return Judged(replies, {}, {}, len(replies))


def test_every_turn_of_every_model_is_asked_about_once() -> None:
    found = asked("single")
    assert [(m.question.id, m.turn, m.model) for m in found] == [
        (n, turn, model) for n in (1, 2) for turn in (1, 2) for model in ("sft", "dpo")
    ]
    assert all(len(match.prompts) == 1 for match in found)


def test_ratings_make_the_table_and_failures_are_counted_by_their_kind() -> None:
    """sft: writing (4 + 6) / 2, math 8 and none, mean 18 / 3; dpo: 1, 11 is out of range, 3."""
    found = asked("single")
    said = ["[[4]]", "[[1]]", "[[6]]", "[[11]]", "[[8]]", "hm", "none", None]
    result = single_result(found, judged(found, said), JUDGE)
    assert result.summary["sft"]["categories"] == {"math": 8.0, "writing": 5.0}
    assert result.summary["sft"]["average"] == 6.0
    assert result.summary["sft"]["problems"] == {"no_rating": 1}
    assert result.summary["dpo"]["average"] == 1.0
    assert result.summary["dpo"]["failures"] == 3
    assert result.summary["dpo"]["problems"] == {"out_of_range": 1, "no_rating": 1, "refused": 1}
    assert [row["score"] for row in result.rows] == [4, 1, 6, -1, 8, -1, -1, -1]
    lines = [line.split() for line in result.table.splitlines()]
    assert lines[0] == ["Metric", "sft", "dpo"]
    assert lines[-1] == ["Failures", "1", "of", "4", "3", "of", "4"]
    assert ["Avg", "6.00", "1.00"] in lines


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        (("[[A]]", "[[B]]"), "win"),
        (("[[B]]", "[[A]]"), "loss"),
        (("[[C]]", "[[C]]"), "tie"),
        (("[[A]]", "[[A]]"), "tie"),
        (("[[B]]", "[[B]]"), "tie"),
        (("[[A]]", "[[C]]"), "tie"),
        (("[[C]]", "[[A]]"), "tie"),
        (("[[A]]", "hm"), "failures"),
        (("hm", "hm"), "failures"),
    ],
)
def test_only_who_wins_in_both_orders_has_won(said: tuple[str, str], outcome: str) -> None:
    found = asked("pairwise")
    assert [match.model for match in found] == ["dpo"] * 4
    result = pairwise_result(found, judged(found, said * 4), JUDGE, "sft")
    counts = result.summary["dpo"]
    assert {kind: counts[kind] for kind in ("win", "tie", "loss", "failures")} == {
        **dict.fromkeys(("win", "tie", "loss", "failures"), 0),
        outcome: 4,
    }
    assert counts["disagreement"] == (4 if (outcome == "tie" and said[0] != "[[C]]") or
                                      said == ("[[C]]", "[[A]]") else 0)  # fmt: skip
    score = {"win": 1.0, "tie": 0.5, "loss": 0.0, "failures": None}[outcome]
    assert counts["average"] == score


def test_the_two_orders_differ_in_nothing_else() -> None:
    first, second = asked("pairwise")[0].prompts
    assert first.user.index("\ne\n") < first.user.index("\na\n")
    assert second.user.index("\na\n") < second.user.index("\ne\n")
    assert sorted(first.user) == sorted(second.user)


def written(mode: Mode, tmp_path: Path) -> tuple[Path, Result]:
    found = asked(mode)
    if mode == "single":
        result = single_result(found, judged(found, ["[[4]]", "hm"] * 4), JUDGE)
    else:
        result = pairwise_result(found, judged(found, ["[[A]]", "[[B]]"] * 4), JUDGE, "sft")
    return write_result(tmp_path, mode, result, JUDGE, {"limit": None}), result


@pytest.mark.parametrize("mode", ["single", "pairwise"])
def test_the_result_file_has_models_judge_and_settings(mode: Mode, tmp_path: Path) -> None:
    file, result = written(mode, tmp_path)
    content = json.loads(file.read_text("utf-8"))
    assert content["judge"] == "some/judge"
    assert content["settings"] == {"limit": None}
    assert content["models"] == json.loads(json.dumps(result.summary))
    judgments = {"single": "some--judge_single.jsonl", "pairwise": "some--judge_pair.jsonl"}[mode]
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        [file.name, judgments]
    )


def fastchat(*names: str) -> dict[str, Any]:
    """Functions of FastChat's own code; its module imports what is not installed here."""
    source = find_bundled("common.py").read_text("utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its regular expressions
        tree = ast.parse(source)
    chosen: list[ast.stmt] = [
        node
        for node in tree.body
        if (isinstance(node, ast.FunctionDef) and node.name in names)
        or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "reverse_model_map")
    ]
    namespace: dict[str, Any] = {"json": json, "glob": glob, "os": os}
    exec(compile(ast.Module(chosen, []), "common.py", "exec"), namespace)
    return namespace


def test_fastchat_reads_our_answers_and_judgments(tmp_path: Path) -> None:
    names = ("normalize_game_key_single", "normalize_game_key_dict")
    readers = ("load_model_answers", "load_single_model_judgments")
    theirs = fastchat(*readers, "load_pairwise_model_judgments", *names)
    said = {
        question: [Reply(text=text, time=7.0, **COUNTS) for text in turns]
        for question, turns in ANSWERS["sft"].items()
    }
    write_answers(tmp_path / "model_answer" / "sft.jsonl", "sft", said)
    answers = theirs["load_model_answers"](str(tmp_path / "model_answer"))
    assert answers["sft"][2]["choices"][0]["turns"] == ["c", "d"]
    written("single", tmp_path)
    written("pairwise", tmp_path)
    folder = tmp_path / "model_judgment"
    single = theirs["load_single_model_judgments"](str(folder / "some--judge_single.jsonl"))
    assert single["some/judge", "single-math-v1"][2, "sft"] == {"score": 4.0, "judgment": "[[4]]"}
    assert single["some/judge", "single-v1"][1, "dpo"]["score"] == -1
    pairs = theirs["load_pairwise_model_judgments"](str(folder / "some--judge_pair.jsonl"))
    assert pairs["some/judge", "pair-v2"][1, "dpo", "sft"]["winners"] == ("model_1",)
