"""Rewards of one's own where answers are measured: beside the rule, and beside a reward model.

Answers are files here, as a model's would be; the functions run in processes of their own.
"""

from pathlib import Path
from typing import Any

import pytest

from alignctl.config.generation import MathOptions, WinOptions
from alignctl.config.rewards import RewardFunction
from alignctl.errors import RunError
from alignctl.evaluation import prompts
from alignctl.rewards.workers import RuleWorkers
from alignctl.stages import eval_math, eval_preference
from tests import tiny
from tests.stages.conftest import Alignctl, refused

MODULE = """
def words(prompt, completion, row):
    if completion == "none":
        raise ValueError(f"{prompt} {row['level']}")
    return len(completion.split())

def never(prompt, completion, row):
    raise RuntimeError("broken")
"""
ROWS = [{"question": f"{n} + 1?", "answer": f"#### {n + 1}", "level": n} for n in range(3)]
SAID = [["so 1", "2"], ["none", "it is 2"], ["it must be 3", "4 5"]]
"""Two answers to each problem: right and wrong; a failure and right; right and wrong."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "my_reward.py").write_text(MODULE)
    tiny.write_rows(tmp_path / "rows.jsonl", ROWS)
    return tmp_path / "my_reward.py"


def math_options(source: Path, *names: str) -> MathOptions:
    return MathOptions(
        models=[source.parent / "model"],
        data=source.parent / "rows.jsonl",
        output=source.parent / "out",
        samples=2,
        temperature=1.0,
        functions=[RewardFunction(file=source, name=name) for name in names],
    )


def measured(options: MathOptions) -> dict[str, Any]:
    """What `eval math` makes of the answers."""
    file = prompts.read(options.data)
    rows = [{"response": said, "num_tokens": [3, 3], "finish": ["stop", "stop"]} for said in SAID]
    answers = tiny.write_rows(options.output.with_name("answers.jsonl"), rows)
    with RuleWorkers(1) as workers:
        solved = eval_math._judged(answers, file, options, workers)
    return eval_math.measure(solved) | eval_math._rewarded(answers, file, options)


def test_a_function_stands_beside_the_rule_and_its_failures_are_counted(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Words: 2, 1; a failure, 3; 4, 2. Their mean is 12 / 5."""
    found = measured(math_options(source, "words"))
    assert found["exact_match"]["value"] == pytest.approx(0.5)
    assert found["reward_words"] == pytest.approx(12 / 5)
    assert found["reward_words_failed"] == 1
    said = capsys.readouterr().err
    assert "warning: reward words gave 1 of 6 answers no score; the first is an answer to " in said
    assert "rows.jsonl:2: my_reward.py:4: ValueError: 1 + 1? 1" in said
    table = {
        line.split("  ")[0]: line.split()[-1]
        for line in eval_math._table({"a": found}).splitlines()
    }
    assert (table["reward words"], table["reward words_failed"]) == ("2.4", "1")


def test_a_function_that_never_scores_ends_the_evaluation_with_its_reason(source: Path) -> None:
    with pytest.raises(RunError) as caught:
        measured(math_options(source, "words", "never"))
    assert "reward never gave 6 of 6 answers no score" in caught.value.message
    assert "rows.jsonl:1: my_reward.py:8: RuntimeError: broken" in caught.value.message


def test_wins_by_a_function_count_the_prompts_where_it_scores_both(source: Path) -> None:
    """Words 2 to 3, a failure, 2 to 2: a loss and a tie make a quarter."""
    options = WinOptions(
        models=[source.parent / "model"],
        data=source.parent / "rows.jsonl",
        output=source.parent / "out",
        reward_load=source.parent / "reward",
        baseline=source.parent / "base",
        functions=[RewardFunction(file=source, name="words")],
    )
    said = {"model": ["so 1", "none", "4 5"], "baseline": ["it is 1", "2", "two words"]}
    found: dict[str, dict[str, Any]] = {name: {} for name in said}
    answers = {name: [{"response": each} for each in texts] for name, texts in said.items()}
    eval_preference._add_own(found, answers, prompts.read(options.data), options)
    assert found["model"]["wins_by_words"]["value"] == pytest.approx(1 / 4)
    assert found["model"]["reward_words"] == pytest.approx(2.0)
    assert (found["model"]["reward_words_failed"], found["baseline"]["reward_words_failed"]) == (
        1,
        0,
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "gone.py: "),
        ("def score(answer): return 1", "gone.py:1: score(answer) cannot be called with three"),
        ("raise ValueError('early')\ndef score(*all): return 1", "ValueError: early"),
    ],
)
@pytest.mark.parametrize("command", ["math", "preference"])
def test_a_function_that_cannot_be_used_is_refused_before_a_model_is_looked_for(
    command: str, content: str | None, message: str, alignctl: Alignctl, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "gone.py").write_text(content)
    data = tiny.write_rows(tmp_path / "rows.jsonl", ROWS)
    beside = ("--baseline", "base", "--reward-load", "reward") if command == "preference" else ()
    words = [f"functions=[{{file: {tmp_path / 'gone.py'}}}]", "--data", data]
    outcome = alignctl(
        "eval", command, tmp_path / "model", *beside, *words, "--output", tmp_path / "out"
    )
    assert message in refused(outcome)
    assert not (tmp_path / "out").exists()
