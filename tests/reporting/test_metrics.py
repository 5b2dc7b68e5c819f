import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from alignctl.reporting.metrics import MetricsWriter
from alignctl.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def rows(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.metrics.read_text().splitlines()]


def scalars(folder: RunFolder, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder.tensorboard))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def train(folder: RunFolder, first: int, last: int, loss: float) -> None:
    """Completes the steps `first` to `last`."""
    with MetricsWriter(folder, enabled=True, step=first - 1) as metrics:
        metrics.start(first - 1, 10)
        for step in range(first, last + 1):
            metrics.train(step, loss=loss)


def test_every_kind_of_row_says_when_and_at_which_step(folder: RunFolder) -> None:
    with MetricsWriter(folder, enabled=True) as metrics:
        metrics.start(0, 2)
        metrics.preview([("Human: hi\n", False), ("hello", True)])
        metrics.train(1, loss=2.5, tokens=7)
        metrics.validation(1, loss=2.25, token_accuracy=0.5)
        metrics.checkpoint(1, Path("checkpoints/iter_0000001"))
        metrics.note("all is well")
    written = rows(folder)
    assert all(row.pop("time") > 0 for row in written)
    assert written == [
        {"kind": "start", "step": 0, "total": 2},
        {"kind": "preview", "step": 0, "pieces": [["Human: hi\n", False], ["hello", True]]},
        {"kind": "train", "step": 1, "loss": 2.5, "tokens": 7},
        {"kind": "validation", "step": 1, "loss": 2.25, "token_accuracy": 0.5},
        {"kind": "checkpoint", "step": 1, "path": "checkpoints/iter_0000001"},
        {"kind": "note", "step": 1, "text": "all is well"},
    ]
    assert scalars(folder, "train/loss") == [(1, 2.5)]
    assert scalars(folder, "validation/token_accuracy") == [(1, 0.5)]


def test_a_resumed_run_has_every_step_once(folder: RunFolder) -> None:
    train(folder, 1, 6, loss=1.0)
    train(folder, 5, 8, loss=2.0)  # the last checkpoint was at step 4
    steps = [(row["step"], row["loss"]) for row in rows(folder) if row["kind"] == "train"]
    expected = [*((step, 1.0) for step in range(1, 5)), *((step, 2.0) for step in range(5, 9))]
    assert steps == expected
    assert scalars(folder, "train/loss") == expected


def test_an_attempt_that_begins_at_the_start_again_has_step_0_once(folder: RunFolder) -> None:
    for loss in (1.0, 2.0):
        with MetricsWriter(folder, enabled=True) as metrics:
            metrics.validation(0, loss=loss)
            metrics.train(1, loss=loss)
    assert [(row["step"], row["loss"]) for row in rows(folder)] == [(0, 2.0), (1, 2.0)]
    assert scalars(folder, "validation/loss") == [(0, 2.0)]


def test_a_row_that_a_killed_process_left_unfinished_is_removed(folder: RunFolder) -> None:
    train(folder, 1, 2, loss=1.0)
    with folder.metrics.open("a") as stream:
        stream.write('{"kind": "train", "st')
    train(folder, 3, 3, loss=1.0)
    assert [row["step"] for row in rows(folder) if row["kind"] == "train"] == [1, 2, 3]


def test_values_that_are_not_finite_are_valid_json(folder: RunFolder) -> None:
    with MetricsWriter(folder, enabled=True) as metrics:
        metrics.train(1, loss=math.nan, grad_norm=math.inf)
    (row,) = rows(folder)
    assert math.isnan(float(row["loss"]))
    assert float(row["grad_norm"]) == math.inf


def test_the_other_ranks_write_nothing(folder: RunFolder) -> None:
    with MetricsWriter(folder, enabled=False) as metrics:
        metrics.start(0, 1)
        metrics.train(1, loss=1.0)
        metrics.checkpoint(1, "x")
    assert list(folder.path.iterdir()) == []


def test_writing_metrics_imports_no_torch(folder: RunFolder) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from alignctl.run_folder import RunFolder\n"
        "from alignctl.reporting.metrics import MetricsWriter\n"
        "assert 'tensorboard' not in sys.modules\n"
        "with MetricsWriter(RunFolder(Path(sys.argv[1])), enabled=True) as metrics:\n"
        "    metrics.train(1, loss=1.0)\n"
        "assert not {'torch', 'tensorflow'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(folder.path)], check=True)
