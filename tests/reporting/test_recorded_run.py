from pathlib import Path

import numpy as np
import pytest

from alignctl.errors import UserError
from alignctl.reporting.page.recorded_run import read, short_names
from tests.reporting import run_folders


def test_a_run_in_progress_tells_what_it_has_measured(tmp_path: Path) -> None:
    rows = [
        run_folders.start(10),
        run_folders.validation(0, loss=6.5),
        run_folders.train(1, loss=6.0, grad_norm="inf"),
        run_folders.train(2, loss="nan", grad_norm=1),
    ]
    run = read(run_folders.write(tmp_path / "sft", rows), "sft")
    assert (run.stage, run.unit, run.result, run.total, run.last_step) == (
        "sft",
        "step",
        None,
        10,
        2,
    )
    assert run.times == (1e9, 1e9 + 2)
    assert run.seconds == 2
    assert run.train["loss"].steps.tolist() == [1, 2]
    np.testing.assert_equal(run.train["loss"].values, [6.0, np.nan])
    np.testing.assert_equal(run.train["grad_norm"].values, [np.inf, 1.0])
    assert run.validation["loss"].values.tolist() == [6.5]


def test_breaks_between_attempts_are_not_time_that_a_run_took(tmp_path: Path) -> None:
    """Two seconds, then a night, then one second."""
    again = run_folders.start(10) | {"step": 2, "time": 1e9 + 40_000}
    rows = [run_folders.start(10), run_folders.train(2, loss=6.0), again]
    rows.append(run_folders.train(3, loss=5.0) | {"time": 1e9 + 40_001})
    assert read(run_folders.write(tmp_path / "sft", rows), "sft").seconds == 3


def test_damaged_lines_are_counted_but_an_unfinished_last_one_is_not(tmp_path: Path) -> None:
    folder = run_folders.write(tmp_path, [run_folders.train(1, loss=1.0)])
    with (folder / "metrics.jsonl").open("ab") as stream:
        stream.write(b'{"kind": "tra\n\n[1]\n\xff\xfe\n{"kind": "train", "step": 2, "lo')
    run = read(folder, "run")
    assert run.damaged == [2, 4, 5]
    assert run.train["loss"].values.tolist() == [1.0]


def test_a_kind_that_is_no_word_is_passed_over(tmp_path: Path) -> None:
    rows = [{"kind": {"a": 1}, "step": 1, "loss": 1.0}, run_folders.train(1, loss=2.0)]
    assert read(run_folders.write(tmp_path, rows), "run").train["loss"].values.tolist() == [2.0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"steps": {}}', "result.json: steps is no whole number, but {}"),
        (None, "it has no result.json"),
    ],
)
def test_a_result_that_says_nonsense_is_named(
    tmp_path: Path, content: str | None, words: str
) -> None:
    """Also a link to itself, which is not simply absent."""
    folder = run_folders.write(tmp_path, [run_folders.train(1, loss=1.0)])
    file = folder / "result.json"
    file.unlink(missing_ok=True)
    if content is None:
        file.symlink_to(file)
    else:
        file.write_text(content)
    with pytest.raises(UserError) as caught:
        read(folder, "run")
    assert words in caught.value.message


def test_rows_of_unknown_kinds_and_values_that_are_no_numbers_are_passed_over(
    tmp_path: Path,
) -> None:
    rows = [
        {"kind": "poem", "step": 1, "time": 1, "loss": 1.0},
        {"kind": "train", "step": "one", "loss": 1.0},
        run_folders.train(1, loss=2.0, is_good=True, text="words", more=[1]),
    ]
    run = read(run_folders.write(tmp_path, rows), "run")
    assert {name: series.values.tolist() for name, series in run.train.items()} == {"loss": [2.0]}


def test_numbers_that_no_chart_can_hold_are_infinite(tmp_path: Path) -> None:
    """Differences of such numbers overflow; integers of 400 digits are no floats at all."""
    rows = [run_folders.train(n, loss=v) for n, v in enumerate([1.0, 1e308, -1e308, 10**400], 1)]
    rows += [{"kind": "train", "step": 10**400, "loss": 1.0}, {"kind": "start", "total": 10**400}]
    run = read(run_folders.write(tmp_path, rows), "run")
    infinite = float("inf")
    assert run.train["loss"].values.tolist() == [1.0, infinite, -infinite, infinite]
    assert (run.last_step, run.total) == (4, None)


def test_notes_that_warn_are_told_once(tmp_path: Path) -> None:
    texts = ["warning: slow", "a sample", "warning: slow"]
    rows = [{"kind": "note", "step": 0, "time": 0, "text": text} for text in texts]
    run = read(run_folders.write(tmp_path, rows), "run")
    assert run.warnings == ["warning: slow"]


def test_stages_that_sample_count_episodes(tmp_path: Path) -> None:
    assert read(run_folders.write(tmp_path, experience={"prompts": 8}), "run").unit == "episode"


def test_a_folder_without_a_configuration_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        read(tmp_path, "run")


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/sft"], ["sft"]),
        (["runs/sft", "runs/dpo"], ["sft", "dpo"]),
        (["a/runs/sft", "b/runs/sft"], ["a/runs/sft", "b/runs/sft"]),
        ([], []),
    ],
)
def test_names_are_the_shortest_that_differ(paths: list[str], names: list[str]) -> None:
    assert short_names([Path(path) for path in paths]) == names
