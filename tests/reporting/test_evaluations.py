"""Results as the programs of `eval` write them, as a page has them."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignctl.errors import UserError
from alignctl.reporting.page.evaluations import Share, is_result, read
from tests.reporting import run_folders


def test_math_has_shares_with_intervals_and_counts(tmp_path: Path) -> None:
    folder = run_folders.write_result(
        tmp_path / "math",
        "math",
        sft={"exact_match": share(0.25), "problems": 1200, "mean_tokens": 3.14159, "model": "x"},
        grpo={"exact_match": share(0.5), "problems": 1200, "mean_tokens": 7.0},
    )
    [found] = read([folder])
    assert (found.title, found.about, found.models) == ("Math", "on rows.jsonl", ["sft", "grpo"])
    [measure] = found.measures
    assert (measure.name, measure.best) == ("exact match", 0.5)
    assert [str(each) for each in measure.shares] == ["25.0 [15.0, 35.0]", "50.0 [40.0, 60.0]"]
    assert [(row.name, row.values) for row in found.others] == [
        ("problems", ["1,200", "1,200"]),
        ("mean tokens", ["3.142", "7"]),
    ]


def test_a_baseline_does_not_win_against_itself(tmp_path: Path) -> None:
    folder = run_folders.write_result(
        tmp_path / "wins",
        "preference",
        dpo={"win_rate": share(0.75), "ties": 1},
        baseline={"win_rate": share(0.5), "ties": 9},
    )
    [found] = read([folder])
    assert found.measures[0].shares == [Share(0.75, (0.65, 0.85)), None]
    assert (found.even, found.others[0].values) == (0.5, ["1", "9"])


def test_tasks_of_the_harness_are_shares_only_where_more_is_better(tmp_path: Path) -> None:
    """0.5 +- 0.1: 0.304 to 0.696; bits per byte, 0.8 of them, are no share."""
    better = {"sums": {"acc": True, "bits_per_byte": False}}
    measured = {
        "acc,none": 0.5,
        "acc_stderr,none": 0.1,
        "acc,strict": 1,
        "bits_per_byte,none": 0.8,
        "sample_len": 40,
    }
    folder = run_folders.write_result(
        tmp_path / "tasks",
        "lm-eval",
        sft={"results": {"sums": measured}, "higher_is_better": better},
    )
    [found] = read([folder])
    first, second = found.measures
    assert (first.name, str(first.shares[0])) == ("sums acc", "50.0 [30.4, 69.6]")
    assert (second.name, str(second.shares[0])) == ("sums acc (strict)", "100.0")
    assert [(row.name, row.values) for row in found.others] == [("sums bits_per_byte", ["0.8"])]


def test_the_result_of_a_run_is_none_of_an_evaluation(tmp_path: Path) -> None:
    run = run_folders.finish(run_folders.write(tmp_path / "run"), eval="math")
    assert not is_result(run)
    assert not is_result(tmp_path)
    assert is_result(run_folders.write_result(tmp_path / "math", "math"))


@pytest.mark.parametrize(
    "result",
    [{"eval": "taste", "models": {}}, {"eval": "math"}, {"eval": "math", "models": {"a": 1}}],
)
def test_what_is_not_known_is_refused_by_name(result: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(result))
    with pytest.raises(UserError, match=r"result\.json"):
        read([tmp_path])


def share(value: float) -> dict[str, Any]:
    return {"value": value, "interval": [value - 0.1, value + 0.1]}
