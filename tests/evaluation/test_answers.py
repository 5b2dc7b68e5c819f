"""Files of answers: what interruptions leave, and how rows are written."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignctl.errors import RunError, UserError
from alignctl.evaluation.answers import AnswerFile, format_row, format_text, key_of
from alignctl.evaluation.generation import Answer

KEY = key_of("one")


def answer(text: str) -> Answer:
    return Answer(text, (5, 6, 2), "stop")


def partial(path: Path) -> Path:
    (found,) = path.parent.glob(".*.partial")
    return found


def test_rows_are_hidden_until_all_are_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "answers.jsonl"
    with AnswerFile(path, KEY) as out:
        out.write(["{}"])
        assert not path.exists()
        out.commit({"rows": 1})
    assert path.read_text() == "{}\n"
    assert json.loads((path.parent / "answers.jsonl.info.json").read_text()) == {
        "key": KEY,
        "rows": 1,
    }
    assert sorted(each.name for each in path.parent.iterdir()) == [
        "answers.jsonl",
        "answers.jsonl.info.json",
    ]


def test_the_same_command_finds_its_work_done(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerFile(path, KEY) as out:
        out.write(["{}"])
        out.commit({})
    with AnswerFile(path, KEY) as out:
        assert out.state == "finished"
    with pytest.raises(UserError, match="exists already, and is of another"):
        AnswerFile(path, key_of("two")).__enter__()


@pytest.mark.parametrize("info", [None, "", "[1]", "{}"])
def test_a_file_that_nobody_vouches_for_is_not_overwritten(
    info: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text("mine\n")
    if info is not None:
        (tmp_path / "answers.jsonl.info.json").write_text(info)
    with pytest.raises(UserError, match="exists already"):
        AnswerFile(path, KEY).__enter__()
    assert path.read_text() == "mine\n"


@given(
    rows=st.lists(st.lists(st.text("ab", max_size=3), min_size=2, max_size=2), max_size=4),
    cut=st.integers(0, 40),
)
def test_wherever_writing_was_killed_complete_rows_are_kept(
    rows: Sequence[list[str]], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Rows of two lines: what is left is the longest whole number of them before the cut."""
    path = tmp_path_factory.mktemp("killed") / "answers.txt"
    with AnswerFile(path, KEY, lines_per_row=2) as out:
        for row in rows:
            out.write(row)
    whole = partial(path).read_bytes()
    partial(path).write_bytes(whole[:cut])
    ends = [sum(len(line) + 1 for row in rows[:n] for line in row) for n in range(len(rows) + 1)]
    kept = sum(end <= min(cut, len(whole)) for end in ends) - 1
    with AnswerFile(path, KEY, lines_per_row=2) as out:
        assert out.done == kept
        for row in rows[kept:]:
            out.write(row)
        out.commit({})
    assert path.read_bytes() == whole


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerFile(path, KEY), pytest.raises(UserError, match="written by another process"):
        AnswerFile(path, KEY).__enter__()


def test_a_full_disk_keeps_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "answers.jsonl"
    with AnswerFile(path, KEY) as out:
        out.write(["{}"])
        with Path("/dev/full").open("wb", buffering=0) as full, monkeypatch.context() as patch:
            patch.setattr(out, "_stream", full)
            with pytest.raises(RunError, match="No space left on device; 1 rows are kept"):
                out.write(["{}"])
    with AnswerFile(path, KEY) as out:
        assert out.done == 1


def test_a_row_keeps_its_keys_and_gets_what_was_said() -> None:
    row = json.loads(format_row({"query": "q", "response": "old"}, [answer("a\n")], is_cut=True))
    assert row == {
        "query": "q",
        "given_response": "old",
        "response": "a\n",
        "finish": "stop",
        "num_tokens": 3,
        "prompt_cut": True,
    }


def test_several_answers_are_lists() -> None:
    row = json.loads(format_row({"query": "q"}, [answer("a"), answer("b")], is_cut=False))
    assert row["response"] == ["a", "b"]
    assert row["finish"] == ["stop", "stop"]


@given(st.text())
def test_an_answer_is_one_line_of_text_and_can_be_read_back(text: str) -> None:
    (line,) = format_text([answer(text)])
    assert "\n" not in line
    assert "\r" not in line
    marks = {"\\n": "\n", "\\r": "\r", "\\\\": "\\"}
    back, place = "", 0
    while place < len(line):
        mark = line[place : place + 2]
        back, place = (
            (back + marks[mark], place + 2) if mark in marks else (back + line[place], place + 1)
        )
    assert back == text


@given(st.text(st.characters(categories=("L", "Cs"))))
def test_a_row_is_text_that_can_be_written(text: str) -> None:
    line = format_row({"query": text}, [answer("a")], is_cut=False)
    assert json.loads(line.encode())["query"] == text
