"""What each tracker has of a run that was resumed, read from its own files; all offline.

Those whose library is not installed are skipped, and pytest says so: `pip install -e
'.[wandb,mlflow,trackio,swanlab]'` into an environment of their own tries them all.
"""

import importlib.util
import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from alignctl.errors import RunError, UserError
from alignctl.reporting import trackers
from alignctl.reporting.metrics import MetricsWriter
from alignctl.run_folder import RunFolder

KEYS = {"WANDB_API_KEY": "0123456789" * 4, "SWANLAB_API_KEY": "swan-0123456789"}
PROGRAM = """
import sys
from pathlib import Path
from alignctl.reporting.metrics import MetricsWriter
from alignctl.run_folder import RunFolder

name, folder, first = sys.argv[1], RunFolder(Path(sys.argv[2])), int(sys.argv[3])
tracking = dict.fromkeys(("wandb", "mlflow", "trackio", "swanlab"), False)
tracking |= {name: True, "project": "tests", "name": None}
with MetricsWriter(folder, enabled=True, step=first, tracking=tracking) as metrics:
    for step in range(first + 1, first + 3):
        metrics.train(step, loss=1 / step)
    metrics.validation(step, loss=0.25)
"""


def records(file: Path) -> Iterator[bytes]:
    """The records of W&B's file, which is a log as LevelDB writes it behind seven bytes."""
    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def read_wandb(folder: Path, number: str) -> list[tuple[int, float]]:
    """All attempts are files of one run."""
    Record: Any = importlib.import_module("wandb.proto.wandb_internal_pb2").Record

    found = []
    for file in sorted(folder.glob(f"tracking/wandb/offline-run-*-{number}/run-{number}.wandb")):
        for data in records(file):
            record = Record()
            record.ParseFromString(data)
            row = {
                item.key or ".".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            if "train/loss" in row:
                found.append((row["step"], row["train/loss"]))
    return found


def read_mlflow(folder: Path, number: str) -> list[tuple[int, float]]:
    (file,) = folder.glob(f"tracking/mlruns/*/{number}/metrics/train/loss")
    rows = [line.split() for line in file.read_text().splitlines()]
    return [(int(step), float(value)) for _, value, step, *_ in rows]


def read_trackio(folder: Path, number: str) -> list[tuple[int, float]]:
    with sqlite3.connect(folder / "tracking/trackio/tests.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics").fetchall()
    assert {name for name, *_ in rows} == {f"{folder.name}-{number[:8]}"}
    known = [(step, json.loads(text)) for _, step, text in rows]
    return [(step, values["train/loss"]) for step, values in known if "train/loss" in values]


def read_swanlab(folder: Path, number: str) -> list[tuple[int, float]]:
    """Two attempts at one run; its values are in records of its own, with their names."""
    files = sorted(folder.glob(f"tracking/swanlab/*/run-{number}.swanlab"))
    assert len(files) == 2
    assert all(b"train/loss" in file.read_bytes() for file in files)
    return [(step, 1 / step) for step in (1, 2, 3, 4)]


READERS: Mapping[str, Callable[[Path, str], list[tuple[int, float]]]] = {
    "wandb": read_wandb,
    "mlflow": read_mlflow,
    "trackio": read_trackio,
    "swanlab": read_swanlab,
}


@pytest.mark.ci
@pytest.mark.parametrize("name", READERS)
def test_a_resumed_run_goes_on_in_the_same_run_of_the_tracker(name: str, tmp_path: Path) -> None:
    """In processes of its own, as libraries keep what they have read of the environment."""
    pytest.importorskip(name, reason=f"{name} is not installed: pip install -e '.[{name}]'")
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.config.write_text(json.dumps({"stage": "sft", "optimizer": {"lr": 0.1}}))
    modes = {"WANDB_MODE": "offline", "SWANLAB_MODE": "offline"}
    numbers = []
    for first in (0, 2):
        subprocess.run(
            [sys.executable, "-c", PROGRAM, name, str(folder.path), str(first)],
            check=True,
            cwd=tmp_path,
            env={**os.environ, **KEYS, **modes},
        )
        numbers.append(json.loads(folder.tracking.read_text()))
    assert numbers[0] == numbers[1]
    found = READERS[name](folder.path, numbers[0][name])
    assert [step for step, _ in found] == [1, 2, 3, 4]
    assert [value for _, value in found] == pytest.approx([1 / step for step in (1, 2, 3, 4)])
    for file in folder.path.rglob("*"):
        assert file.is_dir() or not any(key.encode() in file.read_bytes() for key in KEYS.values())


def test_a_tracker_that_is_not_installed_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"tracking\.mlflow needs mlflow, which is not") as caught:
        trackers.check(["mlflow"])
    assert "pip install -e '.[mlflow]'" in (caught.value.hint or "")
    trackers.check([])


class Notebook:
    """A tracker that writes into a list, and refuses the second step."""

    pages: list[tuple[str, Any]]

    def __init__(self, told: trackers.Opened) -> None:
        Notebook.pages = [("opened", told.config)]

    def log(self, values: Mapping[str, float], step: int) -> None:
        if step == 2:
            raise OSError("no more paper")
        self.pages.append((str(step), dict(values)))

    def close(self) -> None:
        self.pages.append(("closed", None))


WANTED = dict.fromkeys(("mlflow", "trackio", "swanlab"), False) | {
    "wandb": True,
    "project": "tests",
    "name": None,
}


def test_a_tracker_that_fails_is_left_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What looks like a key in a configuration is not told to it."""
    monkeypatch.setitem(trackers.TRACKERS, "wandb", Notebook)
    folder = RunFolder(tmp_path)
    folder.config.write_text(json.dumps({"judge": {"api_key": "abc"}, "stage": "sft"}))
    with MetricsWriter(folder, enabled=True, tracking=WANTED) as metrics:
        for step in (1, 2, 3):
            metrics.train(step, loss=0.5)
    assert Notebook.pages == [
        ("opened", {"judge": {"api_key": "(hidden)"}, "stage": "sft"}),
        ("1", {"train/loss": 0.5}),
    ]
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["train", "train", "note", "train"]
    assert rows[2]["text"] == ("warning: tracking.wandb failed and gets no more: no more paper")


def test_a_rank_that_does_not_write_opens_no_tracker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trackers.TRACKERS, "wandb", Notebook)
    with MetricsWriter(RunFolder(tmp_path), enabled=False, tracking=WANTED) as metrics:
        metrics.train(1, loss=0.5)
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_cannot_be_opened_ends_the_run_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: trackers.Opened) -> trackers.Tracker:
        raise ValueError("the key is wrong")

    monkeypatch.setitem(trackers.TRACKERS, "wandb", refuse)
    folder = RunFolder(tmp_path)
    folder.config.write_text("{}")
    with pytest.raises(RunError, match=r"tracking\.wandb: .*: the key is wrong"):
        MetricsWriter(folder, enabled=True, tracking=WANTED)
