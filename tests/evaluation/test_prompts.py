"""Files of prompts."""

import json
from pathlib import Path

import pytest

from alignctl.errors import UserError
from alignctl.evaluation import prompts


def test_a_line_of_text_is_a_prompt_and_blank_ones_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xef\xbb\xbffirst\r\n\n  \nsecond \\n line\xc2\xa0\n")
    found = prompts.read(file)
    assert [row.record for row in found.rows] == [
        {"prompt": "first"},
        {"prompt": "second \\n line\u00a0"},
    ]
    assert [row.line for row in found.rows] == [1, 4]
    assert len(found.questions) == 2


@pytest.mark.parametrize(
    "record",
    [
        {"query": "a?"},
        {"prompt": "a?"},
        {"prompt": [{"role": "user", "content": "a?"}]},
        {"messages": [{"role": "user", "content": "a?"}]},
        {"question": "a?", "answer": "#### 1"},
    ],
)
def test_rows_are_of_the_schemas_of_prompts(record: dict[str, object], tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps(record) + "\n")
    assert prompts.read(file).rows[0].record == record


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", b"\n \n", "no prompts: there is no row in it"),
        ("empty.jsonl", b"", "no prompts: there is no row in it"),
        ("latin.txt", b"one\n\xe9\n", "latin.txt:2: not UTF-8 text"),
        ("other.jsonl", b'{"text": "a"}\n', "other.jsonl:1: the keys of this row (text)"),
        ("mixed.jsonl", b'{"query": "a"}\n{"prompt": "b"}\n', "mixed.jsonl:2: no key 'query'"),
        ("prompts.csv", b"a\n", "not a kind of data file that is read"),
    ],
)
def test_what_is_wrong_is_named(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        prompts.read(tmp_path / name)
    assert words in caught.value.message


def test_a_folder_and_a_file_that_is_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this is a folder"):
        prompts.read(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        prompts.read(tmp_path / "prompts.txt")
