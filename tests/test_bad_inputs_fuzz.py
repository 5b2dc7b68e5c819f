"""A few of the inputs of `benchmarks/bad_inputs.py`, which tries 1,500; a table of all with it."""

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "benchmarks/bad_inputs.py"


@pytest.mark.slow
def test_bad_inputs_end_in_words(tmp_path: Path) -> None:
    """Its exit code is 1 where there was a traceback, a hang, or accepted nonsense."""
    command = [
        sys.executable,
        str(FUZZ),
        "--count",
        "40",
        "--seed",
        "3",
        "--only",
        "presets",
        "rows",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all               40" in done.stdout
