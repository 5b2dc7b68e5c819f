"""`alignctl rewards test`: a function, or a server, tried on rows' own answers."""

import json
from pathlib import Path

import pytest

from tests import tiny
from tests.misbehaving_server import Act
from tests.rewards.reward_server import serving
from tests.stages.conftest import Alignctl, refused

EXAMPLE = Path(__file__).parents[2] / "examples/my_reward.py"
ROWS = [
    {"prompt": "1 + 1?", "answer": "#### 2", "response": ["It is 2.", "It is three"]},
    {"prompt": "2 + 2?", "answer": "4", "response": "4"},
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return tiny.write_rows(tmp_path / "rows.jsonl", ROWS)


def test_scores_failures_and_time_are_told(alignctl: Alignctl, rows: Path) -> None:
    """Words of the three answers: 3, 3 and 1."""
    outcome = alignctl("rewards", "test", EXAMPLE, "--data", rows)
    assert outcome.code == 0, outcome.text
    told = {line.split()[0]: line.split()[1:] for line in outcome.out.splitlines() if line.strip()}
    assert told["answers"] == ["3"]
    assert told["failed"] == ["0"]
    assert told["words"] == ["2.333", "0.9428", "1", "3"]
    assert outcome.out.splitlines()[-2].split()[:2] == ["score", "0.6667"]
    assert "ms per answer" in outcome.out
    outcome = alignctl("rewards", "test", EXAMPLE, "--data", rows, "--json", "--limit", 1)
    assert json.loads(outcome.out)["answers"] == 2


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"prompt": "a", "response": "own"}, "own"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "o"}]},
            "o",
        ),
        ({"question": "a", "answer": "It is #### 2"}, "It is #### 2"),
        ({"query": "a", "answer": 7}, "7"),
    ],
)
def test_answers_are_read_where_rows_have_them(
    alignctl: Alignctl, tmp_path: Path, row: dict[str, object], answer: str
) -> None:
    file = tmp_path / "f.py"
    file.write_text(
        "def score(prompt, completion, row):\n"
        f"    assert (prompt, completion, row) == ('a', {answer!r}, {row!r}), completion\n"
        "    return 1\n"
    )
    rows = tiny.write_rows(tmp_path / "rows.jsonl", [row])
    outcome = alignctl("rewards", "test", file, "--data", rows)
    assert outcome.code == 0, outcome.text


def test_failures_are_shown_with_their_rows_and_end_it_only_if_all_are(
    alignctl: Alignctl, rows: Path, tmp_path: Path
) -> None:
    file = tmp_path / "f.py"
    file.write_text("def score(p, completion, row):\n    return 1 / completion.count('2')\n")
    outcome = alignctl("rewards", "test", file, "--data", rows)
    assert outcome.code == 0, outcome.text
    assert f"{rows}:1: f.py:2: ZeroDivisionError: division by zero" in outcome.err
    assert f"{rows}:2: f.py:2: ZeroDivisionError" in outcome.err
    file.write_text("def score(p, c, row):\n    return float('nan')\n")
    outcome = alignctl("rewards", "test", file, "--data", rows)
    assert outcome.code == 1
    assert f"error: {file}:score: none of 3 answers got a score" in outcome.err


def test_a_server_is_tried_like_a_file(alignctl: Alignctl, rows: Path) -> None:
    with serving(lambda _, number: Act(status=503 if number == 0 else 200)) as served:
        outcome = alignctl("rewards", "test", served.url, "--data", rows, "--json", "name=length")
    assert outcome.code == 0, outcome.text
    assert (json.loads(outcome.out)["failed"], json.loads(outcome.out)["retried"]) == (0, 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("none.py",), "none.py: cannot be read: No such file or directory"),
        (("ftp://x/",), "is not one of http:// or https://"),
        ((EXAMPLE, "name=sore"), "no function 'sore' in it; its functions: score, brevity, form"),
        ((EXAMPLE, "weight=.inf"), "weight must be a finite number"),
        ((EXAMPLE, "nam=score"), "unknown key 'nam'; did you mean 'name'?"),
        ((EXAMPLE, "file=a.py"), "file is not a knob"),
    ],
)
def test_what_is_wrong_is_named(
    alignctl: Alignctl, rows: Path, words: tuple[object, ...], said: str
) -> None:
    assert said in refused(alignctl("rewards", "test", *words, "--data", rows))


def test_a_row_without_an_answer_is_named(alignctl: Alignctl, tmp_path: Path) -> None:
    rows = tiny.write_rows(tmp_path / "rows.jsonl", [{"prompt": "a"}])
    said = refused(alignctl("rewards", "test", EXAMPLE, "--data", rows))
    assert f"{rows}:1: this row has no answer of its own to score" in said
