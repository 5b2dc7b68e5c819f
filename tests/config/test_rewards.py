"""Entries of score.functions: what is refused before anything is started."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from alignctl.config.on_policy import Score
from alignctl.config.rewards import RewardFunction, check_source, file_problems
from alignctl.errors import UserError


def entry(**keys: Any) -> RewardFunction:
    return RewardFunction.model_validate(keys)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "neither of file and url given: a reward is a Python file or a server"),
        ({"file": "a.py", "url": "http://x/"}, "both of file and url given"),
        ({"file": "a.py", "name": "a.b"}, "name 'a.b' is not the name of a function"),
        ({"file": "a.py", "label": "a b"}, "label 'a b': a label is letters, digits and _"),
        ({"file": "a.py", "name": "rule"}, "label 'rule' is alignctl's own; give another one"),
        ({"url": "ftp://x/"}, "url 'ftp://x/' is not one of http:// or https://"),
        ({"url": "x:80"}, "url 'x:80' is not one of http:// or https://"),
        ({"url": "http://"}, "url 'http://' is not one of"),
        ({"url": "http://[::1"}, "url 'http://[::1' is not one of"),
        ({"url": "http://me:secret@x/"}, "url may not hold a user, a password or anything after #"),
        ({"url": "http://x/a b"}, "url holds a character that no URL has"),
        ({"url": "http://x/\r\nHost:y"}, "url holds a character that no URL has"),
        ({"file": "a.py", "weight": float("nan")}, "finite number"),
        ({"file": "a.py", "weight": "2"}, "valid number"),
        ({"file": "a.py", "failed": float("inf")}, "finite number"),
        ({"file": "a.py", "timeout_seconds": 0}, "greater than 0"),
        ({"file": "a.py", "wieght": 2.0}, "Extra inputs are not permitted"),
    ],
)
def test_a_wrong_entry_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        entry(**keys)
    assert said in str(caught.value)
    assert "secret" not in said


def test_a_password_in_a_url_is_not_shown() -> None:
    with pytest.raises(ValidationError) as caught:
        entry(url="ftp://me:secret@x/")
    assert "'x/' is not one of" in str(caught.value.errors(include_input=False))
    assert "secret" not in str(caught.value.errors(include_input=False)[0]["msg"])


def test_labels_tell_rewards_apart() -> None:
    score = Score.model_validate({"functions": [{"file": "a.py"}, {"url": "http://x/"}]})
    assert score.problems() == [
        "score.functions: 2 rewards are called 'score'; give them labels: label: ..."
    ]
    labelled = [{"file": "a.py"}, {"file": "a.py", "label": "other"}]
    assert Score.model_validate({"functions": labelled}).problems() == []


def test_functions_alone_have_to_be_there() -> None:
    assert Score.model_validate({"source": "functions"}).problems() == [
        "score.source functions: score.functions is empty, so nothing scores"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "def score(prompt, completion, row): ...",
        "def score(a, b, c=None, d=1, *, e=2): ...",
        "def score(*arguments): ...",
        "def score(a, /, *rest, **more): ...",
        "from elsewhere import rate as score",
        "score = lambda p, c, r: 1.0",
        "class score:\n    def __new__(cls, p, c, r): return 1.0",
        "def score(): ...\ndef score(a, b, c): ...",
    ],
)
def test_a_function_of_three_arguments_is_found_without_running_the_file(
    tmp_path: Path, text: str
) -> None:
    file = tmp_path / "my_reward.py"
    file.write_text(f"{text}\nraise SystemExit\n")
    check_source(file, "score")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def score(p, c, r):\n    return (", "{file}:2: not valid Python: '(' was never closed"),
        ("def score(p, c, r) return 1", "{file}:1: not valid Python: expected ':'"),
        ("def rate(p, c, r): ...", "{file}: no function 'score' in it; its functions: rate"),
        ("", "{file}: no function 'score' in it; it has no function"),
        (
            "\ndef score(completion): ...",
            "{file}:2: score(completion) cannot be called with three arguments: prompt, "
            "completion, row",
        ),
        ("def score(a, b, c, d): ...", "{file}:1: score(a, b, c, d) cannot be called with three"),
        ("def score(a, b, c, *, d): ...", "{file}:1: score(a, b, c, *, d) cannot be called"),
        ("async def score(a, b, c): ...", "{file}:1: score is async; a plain `def` is expected"),
        ("\0", "{file}: not valid Python: source code string cannot contain null bytes"),
        ("\xff", "{file}: not UTF-8 text: byte 0xff on line 1"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "my_reward.py"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        check_source(file, "score")
    assert caught.value.message.startswith(said.format(file=file))


def test_every_file_that_is_wrong_is_told(tmp_path: Path) -> None:
    entries = [entry(file=tmp_path / "none.py"), entry(file=tmp_path), entry(url="http://x/")]
    problems = file_problems(entries)
    assert len(problems) == 2
    assert "none.py: cannot be read: No such file or directory" in problems[0]
    assert "a folder, where a file is expected" in problems[1]
