"""Run folders as stages leave them, and as killed ones do, written by hand."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write(folder: Path, rows: Iterable[dict[str, Any]] = (), **config: Any) -> Path:
    """A run folder with a configuration and, if there are rows, metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"stage": "sft", "optimizer": {"lr": 1e-3}} | config
    (folder / "config.json").write_text(json.dumps(settings))
    if lines := [json.dumps(row) + "\n" for row in rows]:
        (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def start(total: int) -> dict[str, Any]:
    return {"kind": "start", "step": 0, "time": 1e9, "total": total}


def train(step: int, **values: Any) -> dict[str, Any]:
    return {"kind": "train", "step": step, "time": 1e9 + step, **values}


def validation(step: int, **values: Any) -> dict[str, Any]:
    return {"kind": "validation", "step": step, "time": 1e9 + step, **values}


def finish(folder: Path, **result: Any) -> Path:
    (folder / "result.json").write_text(json.dumps({"stage": "sft"} | result))
    return folder


def write_answers(file: Path, rows: Iterable[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_marks(folder: Path, **models: Any) -> Path:
    """A result of MT-Bench: model to its mean marks by category."""
    entries = {
        name: {"categories": marks, "average": 4.0, "interval": [3.5, 4.5], "failures": 1}
        for name, marks in models.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "mt_bench.json"
    file.write_text(json.dumps({"models": entries, "judge": "gpt-4", "settings": {}}))
    return file


def write_result(folder: Path, kind: str, **models: Any) -> Path:
    """What another `alignctl eval` has found."""
    folder.mkdir(parents=True, exist_ok=True)
    result = {"eval": kind, "data": "rows.jsonl", "version": "0.4.13", "models": models}
    (folder / "result.json").write_text(json.dumps(result))
    return folder
