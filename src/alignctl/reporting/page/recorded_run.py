"""What a run folder tells of its run, whatever state it is in: running, killed, finished.

Damaged lines are skipped, since a report is most useful for a run that died. They are counted, so
that the report can name them.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignctl.errors import UserError
from alignctl.run_folder import RunFolder, read_object
from alignctl.user_files import opened, read_bytes, read_lines, reading

_NOT_FINITE = ("nan", "inf", "-inf")
"""How `reporting.metrics` writes what JSON does not have."""

_HEADER = frozenset(("kind", "step", "time"))


@dataclass(frozen=True, eq=False)
class Series:
    """One measurement over a run: `steps` [N] ascending as recorded, `values` [N], maybe NaN."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(eq=False)
class RecordedRun:
    """One run.

    Attributes:
        path: Its folder.
        name: What it is called beside others.
        config: The resolved configuration.
        result: Of a finished run.
        environment: Versions and devices, empty where they were not written.
        commands: The command lines of its attempts.
        train: Name of a measurement to its values after optimizer steps.
        validation: The same on held-out rows.
        total: Steps of the whole run, None when it never began.
        last_step: The newest step that was measured.
        times: When it was first and last measured, seconds since 1970.
        seconds: How long its attempts took together, without the breaks between them.
        notes: Remarks, in order.
        preview: Text of a training sample in pieces, each with whether it is learned.
        damaged: Lines of the metrics that could not be read, counted from 1.
    """

    path: Path
    name: str
    config: dict[str, Any]
    result: dict[str, Any] | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    commands: str = ""
    train: dict[str, Series] = field(default_factory=dict)
    validation: dict[str, Series] = field(default_factory=dict)
    total: int | None = None
    last_step: int = 0
    times: tuple[float, float] | None = None
    seconds: float | None = None
    notes: list[str] = field(default_factory=list)
    preview: list[tuple[str, bool]] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)

    @property
    def stage(self) -> str:
        """Subcommand, as the configuration has it."""
        return str(self.config.get("stage", "?"))

    @property
    def unit(self) -> str:
        """Name of its steps."""
        return "episode" if "experience" in self.config else "step"

    @property
    def warnings(self) -> list[str]:
        """Notes that warn, each text once."""
        return list(dict.fromkeys(note for note in self.notes if note.startswith("warning")))


def read(path: Path, name: str) -> RecordedRun:
    """Read a run folder.

    Raises:
        UserError: The folder is no run, or a file of it that should be JSON is not.
    """
    folder = RunFolder(path)
    run = RecordedRun(path, name, folder.read_config(), folder.read_result())
    if run.result is not None and not isinstance(steps := run.result.get("steps", 0), int):
        raise UserError(f"{folder.result}: steps is no whole number, but {steps!r:.40}")
    if folder.environment.exists():
        run.environment = read_object(folder.environment)
    if folder.command.exists():
        with reading(folder.command):
            run.commands = read_bytes(folder.command, 1 << 20).decode("utf-8", "replace").strip()
    _read_metrics(folder.metrics, run)
    return run


def short_names(paths: Sequence[Path], separator: str = "/") -> list[str]:
    """Shorten paths to the shortest ends that tell them apart."""
    parts = [path.absolute().parts for path in paths]
    for depth in range(1, max(map(len, parts), default=0)):
        names = [separator.join(each[-depth:]) for each in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return [str(path) for path in paths]


def rows_of(file: Path, damaged: list[int]) -> Iterator[dict[str, Any]]:
    """Read the objects of a file of JSON lines.

    Args:
        file: The file; it may be absent.
        damaged: Gets the numbers of lines that hold no object. A last line without its end is
            still being written, or was left by a killed process, and is none of them.
    """
    if not file.exists():
        return
    with opened(file) as stream:
        for number, line in enumerate(read_lines(file, stream), 1):
            try:
                row = json.loads(line.decode("utf-8", "replace"), parse_int=_whole)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                yield row
            elif line.endswith(b"\n") and line.strip():
                damaged.append(number)


_DRAWN = 1e100


def _whole(digits: str) -> int | float:
    """Read a whole number; one with 19 digits or more becomes a float, perhaps infinite."""
    return int(digits) if len(digits) < 19 else float(digits)


def _read_metrics(file: Path, run: RecordedRun) -> None:
    points: dict[str, dict[str, tuple[list[int], list[float]]]] = {
        kind: defaultdict(lambda: ([], [])) for kind in ("train", "validation")
    }
    for row in rows_of(file, run.damaged):
        kind, step, time = str(row.get("kind")), row.get("step"), row.get("time")
        if isinstance(time, int | float) and math.isfinite(time):
            if run.times and kind != "start":
                run.seconds = (run.seconds or 0.0) + max(0.0, time - run.times[1])
            run.times = (run.times[0] if run.times else time, time)
        if isinstance(step, int):
            run.last_step = step
        if kind in points and isinstance(step, int):
            for name, value in row.items():
                if name not in _HEADER and (number := _number(value)) is not None:
                    steps, values = points[kind][name]
                    steps.append(step)
                    values.append(number)
        elif kind == "start" and isinstance(row.get("total"), int):
            run.total = row["total"]
        elif kind == "note":
            run.notes.append(str(row.get("text")))
        elif kind == "preview":
            label = row.get("label")
            before = [*run.preview, (f"\n\n{label}: ", False)] if isinstance(label, str) else []
            run.preview = [*before, *_pieces(row.get("pieces"))]
    for kind, found in points.items():
        series = {name: Series(np.array(s), np.array(v)) for name, (s, v) in found.items()}
        setattr(run, kind, series)


def _number(value: object) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        # A larger value would flatten all others in a chart, whose ticks would overflow a float.
        return float(value) if abs(value) < _DRAWN else math.copysign(math.inf, value)
    return float(value) if isinstance(value, str) and value in _NOT_FINITE else None


def _pieces(value: object) -> list[tuple[str, bool]]:
    if not isinstance(value, list):
        return []
    pairs = (piece for piece in value if isinstance(piece, list) and len(piece) == 2)
    return [(str(text), bool(is_learned)) for text, is_learned in pairs]
