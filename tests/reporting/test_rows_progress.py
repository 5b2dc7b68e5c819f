import time

import pytest

from alignctl.reporting.progress.rows import RowsProgress


@pytest.mark.parametrize(
    ("total", "line"),
    [(200, "tokenising: 50 of 200 rows, 30 s left\n"), (None, "tokenising: 50 rows\n")],
)
def test_it_speaks_every_few_seconds(
    total: int | None,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """50 rows in 10 seconds leave 150 rows for 30 more; one second later there is no new line."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress = RowsProgress("tokenising")
    now = 110.0
    progress(50, total)
    now = 111.0
    progress(55, total)

    assert capsys.readouterr().err == line
