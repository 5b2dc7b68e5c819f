import json
from pathlib import Path

import torch

from alignctl.reporting.profiler import Profiler
from alignctl.run_folder import RunFolder


def take_steps(folder: RunFolder, first: int, last: int, *, enabled: bool = True) -> list[Path]:
    """Steps that multiply; the traces that were written."""
    found = []
    with Profiler(folder, (2, 3), enabled=enabled, step=first - 1) as profiler:
        for step in range(first, last + 1):
            profiler.before(step)
            torch.ones(8, 8) @ torch.ones(8, 8)
            if trace := profiler.after(step):
                found.append(trace)
    return found


def test_a_trace_has_the_operators_of_the_steps_and_no_others(tmp_path: Path) -> None:
    (trace,) = take_steps(RunFolder(tmp_path), 1, 5)
    assert trace == tmp_path / "profile/steps_2_to_3.json"
    names = [event.get("name") for event in json.loads(trace.read_text())["traceEvents"]]
    assert names.count("aten::mm") == 2
    assert [path.name for path in trace.parent.iterdir()] == [trace.name]


def test_a_resumed_run_records_what_is_left_and_nothing_twice(tmp_path: Path) -> None:
    (trace,) = take_steps(RunFolder(tmp_path), 3, 5)
    names = [event.get("name") for event in json.loads(trace.read_text())["traceEvents"]]
    assert names.count("aten::mm") == 1
    assert take_steps(RunFolder(tmp_path), 4, 5) == []


def test_other_ranks_and_runs_that_end_before_leave_nothing(tmp_path: Path) -> None:
    assert take_steps(RunFolder(tmp_path), 1, 5, enabled=False) == []
    assert take_steps(RunFolder(tmp_path), 1, 2) == []
    assert list(tmp_path.iterdir()) == []
