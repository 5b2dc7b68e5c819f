import io
import re

import pytest
from rich.console import Console

from alignctl.reporting.progress.run import LiveDisplay, Pace, PlainDisplay, display, duration

ROWS = [
    {"kind": "start", "step": 8, "total": 12, "time": 0.0},
    {"kind": "preview", "step": 8, "time": 0.0, "pieces": [["Q: [red]", False], ["A", True]]},
    {
        **{"kind": "train", "step": 9, "time": 100.0, "loss": 1.5, "lr": 1e-5, "grad_norm": 0.25},
        **{"tokens_per_second": 12345.6, "peak_memory_gib": 3.5, "anything_else": 1.0},
    },
    {"kind": "train", "step": 10, "time": 110.0, "loss": "nan", "lr": 1e-5},
    {"kind": "validation", "step": 10, "time": 110.0, "loss": 1.25, "token_accuracy": 0.5},
    {"kind": "checkpoint", "step": 10, "time": 110.0, "path": "checkpoints/iter_0000010"},
    {"kind": "note", "step": 10, "time": 110.0, "text": "dropped 3 [bold] rows"},
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_file_gets_plain_lines() -> None:
    stream = io.StringIO()
    with PlainDisplay(stream) as shown:
        for row in ROWS:
            shown.show(row)
    assert stream.getvalue().splitlines() == [
        "Q: [red][[A]]",
        "step 9/12  loss 1.5000  lr 1.00e-05  grad norm 0.250  tokens/s 12,346  "
        "memory 3.50 GiB  eta 0:05:00",
        "step 10/12  loss nan  lr 1.00e-05  eta 0:00:20",
        "validation at step 10  loss 1.2500  token accuracy 0.5000",
        "checkpoint at step 10: checkpoints/iter_0000010",
        "dropped 3 [bold] rows",
    ]


def test_a_terminal_gets_a_bar_below_lines_that_stay() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=150, color_system="standard")
    with LiveDisplay(console) as shown:
        for row in ROWS:
            shown.show(row)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    assert "validation at step 10  loss 1.2500  token accuracy 0.5000" in lines
    assert "dropped 3 [bold] rows" in lines
    assert "Q: [red]A" in lines
    assert "step 10/12" in lines[-1]
    assert "loss nan  lr 1.00e-05 eta 0:00:20" in lines[-1]
    assert "\x1b[1;32mA" in stream.getvalue()


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    with display(stream) as shown:
        for row in ROWS:
            shown.show(row)
    assert isinstance(shown, LiveDisplay)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", stream.getvalue())


def test_what_is_no_terminal_or_a_dumb_one_gets_plain_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert isinstance(display(io.StringIO()), PlainDisplay)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(display(Terminal()), PlainDisplay)


def test_the_warm_up_counts_only_until_there_is_something_better() -> None:
    pace = Pace()
    assert pace.seconds_left(10) is None
    pace.observe(0, 0.0)
    assert pace.seconds_left(10) is None
    pace.observe(1, 100.0)
    assert pace.seconds_left(10) == pytest.approx(900.0)
    pace.observe(3, 104.0)
    assert pace.seconds_left(10) == pytest.approx(14.0)
    pace.observe(4, 110.0)  # the mean of 2 and 6 seconds
    assert pace.seconds_left(10) == pytest.approx(24.0)
    assert pace.seconds_left(3) == 0.0


def test_one_slow_step_moves_the_estimate_by_a_tenth() -> None:
    pace = Pace()
    for step in range(101):
        pace.observe(step, float(step))
    pace.observe(101, 111.0)
    assert pace.seconds_left(102) == pytest.approx(2.0, abs=0.1)


def test_durations_are_read_at_a_glance() -> None:
    assert [duration(s) for s in (None, 0.4, 61, 3600, 360_000)] == [
        *("-", "0:00:00", "0:01:01", "1:00:00", "100:00:00"),
    ]
