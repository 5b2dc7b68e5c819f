"""A run as it goes on, on stderr: a live bar on a terminal, plain lines in a log file.

Both are fed with the rows of `metrics.jsonl` (see `alignctl.reporting.metrics`).
"""

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from alignctl.console import note_sign, shown, still_seconds
from alignctl.reporting import preview
from alignctl.reporting.metrics import measured
from alignctl.reporting.progress.alive import STILL_SECONDS
from alignctl.reporting.progress.stopwatch import Stopwatch

Row = Mapping[str, Any]

_MEASURES = (
    ("loss", "loss {:.4f}"),
    ("accuracy", "accuracy {:.2f}"),
    ("margin", "margin {:.2f}"),
    ("score", "score {:.3f}"),
    ("kl", "KL {:.3f}"),
    ("length", "length {:.0f}"),
    ("lr", "lr {:.2e}"),
    ("grad_norm", "grad norm {:.3f}"),
    ("loss_scale", "loss scale {:.0f}"),
    ("skipped_steps", "skipped {:.0f}"),
    ("tokens_per_second", "tokens/s {:,.0f}"),
    ("mfu", "MFU {:.1%}"),
    ("peak_memory_gib", "memory {:.2f} GiB"),
)
_PHASE = "seconds_"
"""What the names of a step's parts begin with."""
_SMOOTHING = 0.1
_STARTING = "starting the processes"


class Display(Protocol):
    """What the launcher tells the user while ranks are working; use it as a context manager."""

    def show(self, row: Row) -> None:
        """Show one row of the metrics."""

    def note(self, text: str) -> None:
        """Show a remark that stays."""

    def breathe(self) -> None:
        """Give a sign of life if nothing was shown for long; it is called all the time."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def display(stream: TextIO | None = None) -> Display:
    """Choose the display that fits the stream: a bar for a terminal, lines for others.

    Args:
        stream: Where to write; by default stderr.
    """
    stream = stream or sys.stderr
    console = Console(file=stream)  # rich itself heeds NO_COLOR
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveDisplay(console)
    return PlainDisplay(stream)


class Pace:
    """Smoothed time per step, for the time left."""

    def __init__(self) -> None:
        self._latest: tuple[int, float] | None = None
        self._intervals = 0
        self._seconds_per_step: float | None = None

    def observe(self, step: int, seconds: float) -> None:
        """Note when a step was completed.

        Args:
            step: Completed steps.
            seconds: The moment, on any clock that only moves forward.
        """
        if self._latest is not None and step > self._latest[0]:
            took = (seconds - self._latest[1]) / (step - self._latest[0])
            self._intervals += 1
            # The first interval holds the warm-up: it counts only until there is a second one.
            # From then on a plain mean turns into an exponential one as intervals come in.
            weight = 1.0 if self._intervals <= 2 else max(_SMOOTHING, 1 / (self._intervals - 1))
            before = self._seconds_per_step or 0.0
            self._seconds_per_step = before + weight * (took - before)
        self._latest = (step, seconds)

    def seconds_left(self, total: int) -> float | None:
        """Estimate the seconds until all steps are done, None before enough steps were seen."""
        if self._latest is None or self._seconds_per_step is None:
            return None
        return max(0.0, self._seconds_per_step * (total - self._latest[0]))


class PlainDisplay:
    """One line for each row: for log files and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._pace = Pace()
        self._total = 0
        self._watch = Stopwatch()
        self._doing = _STARTING

    def show(self, row: Row) -> None:
        """Write one row as a line."""
        match row["kind"]:
            case "start":
                self._total = row["total"]
                self._pace.observe(row["step"], row["time"])
                self._doing = f"before step {row['step'] + 1}/{self._total}"
            case "train":
                self._pace.observe(row["step"], row["time"])
                self._doing = f"after step {row['step']}"
                left = duration(self._pace.seconds_left(self._total))
                self.note(f"step {row['step']}/{self._total}  {measures(row)}  eta {left}")
            case "preview":
                self.note(_label(row) + preview.plain(_pieces(row)))
            case _:
                self.note(remark(row))

    def note(self, text: str) -> None:
        """Write a line."""
        self._stream.write(f"{shown(text)}\n")
        self._stream.flush()
        note_sign()

    def breathe(self) -> None:
        """Write a line if there was none for long."""
        if still_seconds() >= STILL_SECONDS:
            self.note(f"{self._doing}: {self._watch.seconds:.0f} s since the start")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.flush()


class LiveDisplay:
    """A bar that stays at the bottom, with remarks, validations and checkpoints above it."""

    def __init__(self, console: Console) -> None:
        self._pace = Pace()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[done]}"),
            BarColumn(bar_width=20),
            TextColumn(
                "{task.fields[measures]}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis"),
            ),
            TextColumn("eta {task.fields[left]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._add_task(_STARTING, total=None, completed=0)
        self._total = 0

    def show(self, row: Row) -> None:
        """Move the bar, or write a line that stays above it."""
        match row["kind"]:
            case "start":
                self._start(row)
            case "train":
                self._advance(row)
            case "preview":
                self._print(Text(_label(row), "bold") + preview.render(_pieces(row)))
            case _:
                self.note(remark(row))

    def note(self, text: str) -> None:
        """Write a line that stays above the bar."""
        self._print(shown(text))

    def breathe(self) -> None:
        """Do nothing: the bar moves by itself."""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def _start(self, row: Row) -> None:
        self._total = row["total"]
        self._pace.observe(row["step"], row["time"])
        self._progress.remove_task(self._task)
        done = f"step {row['step']}/{self._total}"
        self._task = self._add_task(done, total=self._total, completed=row["step"])

    def _add_task(self, done: str, *, total: int | None, completed: int) -> TaskID:
        left = duration(None)
        return self._progress.add_task(
            "", total=total, completed=completed, done=done, measures="", left=left
        )

    def _advance(self, row: Row) -> None:
        self._pace.observe(row["step"], row["time"])
        self._progress.update(
            self._task,
            completed=row["step"],
            done=f"step {row['step']}/{self._total}",
            measures=measures(row),
            left=duration(self._pace.seconds_left(self._total)),
        )

    def _print(self, text: RenderableType) -> None:
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)


def measures(row: Row) -> str:
    """Write the main measurements of a training step, in a fixed order."""
    # Values that are not finite come as text, see `alignctl.reporting.metrics`.
    shown = [form.format(float(row[name])) for name, form in _MEASURES if name in row]
    phases = {name.removeprefix(_PHASE): row[name] for name in row if name.startswith(_PHASE)}
    if phases:
        shown.append(", ".join(f"{name} {_seconds(each)}" for name, each in phases.items()))
    return "  ".join(shown)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"


def remark(row: Row) -> str:
    """Write a row that is not a training step as a line."""
    match row["kind"]:
        case "note":
            return str(row["text"])
        case "checkpoint":
            return f"checkpoint at step {row['step']}: {row['path']}"
        case kind:
            shown = [f"{name.replace('_', ' ')} {_number(v)}" for name, v in measured(row).items()]
            return "  ".join([f"{kind} at step {row['step']}", *shown])


def duration(seconds: float | None) -> str:
    """Write hours, minutes and seconds; a dash when unknown."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _label(row: Row) -> str:
    """Return what a sample is called, in front of it."""
    return f"{shown(str(row['label']))}: " if "label" in row else ""


def _pieces(row: Row) -> list[tuple[str, bool]]:
    return [(text, is_supervised) for text, is_supervised in row["pieces"]]
