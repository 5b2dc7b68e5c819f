"""What a run measured, as lines of JSON (`metrics.jsonl`) and as TensorBoard scalars.

Every line is an object with `kind`, `step` (optimizer steps completed) and `time` (seconds since
1970). The kinds and what they add:

    start       total: the steps of the whole run
    train       loss, lr, grad_norm ... : those of `alignctl.reporting.glossary`, and no other
    validation  loss, token_accuracy ... likewise
    checkpoint  path
    note        text
    preview     pieces: [[text, is_supervised], ...] of one sample; label: better or worse

JSON has no NaN or infinity: they are written as the strings "nan", "inf" and "-inf", which
`float()` reads.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from alignctl import atomic, console
from alignctl.reporting import glossary, trackers
from alignctl.run_folder import RunFolder

if TYPE_CHECKING:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

_SECONDS_BETWEEN_FLUSHES = 10


class MetricsWriter:
    """Appends rows to the metrics of a run; use it as a context manager.

    Rows that an earlier attempt wrote after the step that is resumed from are removed first, so
    that every step appears once.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        enabled: bool,
        step: int = 0,
        tracking: Mapping[str, Any] | None = None,
    ) -> None:
        """Open the metrics of a run.

        Args:
            folder: The run folder.
            enabled: Whether this rank writes; on the others every call does nothing.
            step: The completed steps that this attempt goes on from.
            tracking: Which trackers get the same; None: none.
        """
        self._step = step
        self._lines: TextIO | None = None
        self._events: EventFileWriter | None = None
        self._trackers: dict[str, trackers.Tracker] = {}
        if enabled:
            # A run that begins at 0 measures step 0 again: drop all rows of an unsaved attempt.
            last_kept = step or -1
            cut_after(folder, last_kept)
            self._lines = folder.metrics.open("a", encoding="utf-8", buffering=1)
            self._events = _open_events(folder, last_kept)
            self._trackers = trackers.open_all(folder, tracking) if tracking else {}

    def start(self, step: int, total: int) -> None:
        """Record where this attempt begins, and how many steps the whole run has."""
        self._write("start", step, {"total": total})

    def train(self, step: int, **values: float) -> None:
        """Record the measurements of one optimizer step."""
        self._write("train", step, values)
        self._add_scalars("train", step, values)

    def validation(self, step: int, **values: float) -> None:
        """Record the measurements on held-out rows after a step."""
        self._write("validation", step, values)
        self._add_scalars("validation", step, values)

    def checkpoint(self, step: int, path: object) -> None:
        """Record that a checkpoint is complete, and write all scalars up to it to the disk."""
        self._write("checkpoint", step, {"path": str(path)})
        if self._events is not None:
            self._events.flush()

    def note(self, text: str) -> None:
        """Record a remark for the reader of the log, at the latest step."""
        self._write("note", self._step, {"text": text})

    def preview(self, pieces: Sequence[tuple[str, bool]], label: str | None = None) -> None:
        """Record the decoded tokens of one sample, each with whether it is learned.

        Args:
            pieces: The tokens.
            label: What the sample is, such as better; None: there is but one.
        """
        named = {} if label is None else {"label": label}
        self._write("preview", self._step, {**named, "pieces": [list(piece) for piece in pieces]})

    def close(self) -> None:
        """Write out what is pending; further calls are errors."""
        if self._lines is not None:
            self._lines.close()
        if self._events is not None:
            self._events.close()
        for name, tracker in self._trackers.items():
            self._try(name, tracker.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        self._step = step
        glossary.check(kind, values)
        if self._lines is None:
            return
        row = {"kind": kind, "step": step, "time": time.time()}
        row |= {key: _finite_or_text(value) for key, value in values.items()}
        # One write of one whole line: whoever follows the file never sees the parts of two rows.
        self._lines.write(json.dumps(row, allow_nan=False) + "\n")

    def _try(self, name: str, act: Callable[[], None]) -> bool:
        """Do something with a tracker; a run does not end because one of them fails."""
        try:
            act()
        except Exception as error:  # whatever its library raises: a full disk, a lost server
            text = f"warning: tracking.{name} failed and gets no more: {error}"
            if self._lines is not None and not self._lines.closed:
                self.note(text)
            else:
                console.say(text)
            return False
        return True

    def _add_scalars(self, group: str, step: int, values: Mapping[str, float]) -> None:
        named = {f"{group}/{name}": float(value) for name, value in values.items()}
        self._trackers = {
            name: tracker
            for name, tracker in self._trackers.items()
            if self._try(name, partial(tracker.log, named, step))
        }
        if self._events is None:
            return
        from tensorboard.compat.proto import event_pb2, summary_pb2

        scalars = [
            summary_pb2.Summary.Value(tag=f"{group}/{name}", simple_value=float(value))
            for name, value in values.items()
        ]
        summary = summary_pb2.Summary(value=scalars)
        self._events.add_event(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))


def _finite_or_text(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _open_events(folder: RunFolder, last_kept: int) -> "EventFileWriter":
    # Here and not above: importing it takes a third of a second, and only rank 0 writes.
    from tensorboard.compat.proto import event_pb2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    is_first = not folder.tensorboard.exists()
    events = EventFileWriter(str(folder.tensorboard), flush_secs=_SECONDS_BETWEEN_FLUSHES)
    if not is_first:
        # Tells TensorBoard to drop whatever it has read at this event's step and later.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        events.add_event(
            event_pb2.Event(wall_time=time.time(), step=last_kept + 1, session_log=start)
        )
        events.flush()
    return events


def measured(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a row without its kind, step and time."""
    return {name: value for name, value in row.items() if name not in ("kind", "step", "time")}


def recorded(folder: RunFolder, *, until: int) -> list[dict[str, Any]]:
    """Read the rows of a run up to a step; skip a line that a killed process left unfinished.

    Args:
        folder: The run folder; it may have no metrics yet.
        until: The last step whose rows are wanted.
    """
    return [json.loads(line) for line in _lines(folder) if _is_kept(line, until)]


def _lines(folder: RunFolder) -> list[str]:
    if not folder.metrics.exists():
        return []
    return folder.metrics.read_text(encoding="utf-8").splitlines(keepends=True)


def _is_kept(line: str, step: int) -> bool:
    return line.endswith("\n") and json.loads(line)["step"] <= step


def cut_after(folder: RunFolder, step: int) -> None:
    """Remove the rows after a step, and a last line that a killed process left unfinished.

    Args:
        folder: The run folder; it may have no metrics yet.
        step: The last step whose rows stay.
    """
    lines = _lines(folder)
    kept = [line for line in lines if _is_kept(line, step)]
    if len(kept) < len(lines):
        atomic.write_text(folder.metrics, "".join(kept))
