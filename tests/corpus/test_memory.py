"""Memory does not grow with the text: measured by the slope between two sizes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import ALIGNCTL

SMALL, LARGE = 15_000, 45_000
MEASURE = (
    "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)


def write(file: Path, documents: int) -> int:
    """Documents of about 600 characters, every tenth one twice; returns the bytes."""
    with file.open("w") as stream:
        for number in range(documents):
            n = number - number % 10 // 9
            text = " ".join(f"word{(n * n + i * i * 7) % 9973}" for i in range(70))
            stream.write(json.dumps({"text": text}) + "\n")
    return file.stat().st_size


def peak(*arguments: object) -> int:
    """High-water mark of a command's resident memory, its largest process, in bytes."""
    words = [sys.executable, "-c", MEASURE, ALIGNCTL, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return int(done.stdout) * 1024


@pytest.mark.slow
@pytest.mark.parametrize("command", ["tokenize", "clean", "shard"])
def test_ten_gigabytes_of_text_fit_into_two_of_memory(
    tmp_path: Path, tokenizer_folder: Path, command: str
) -> None:
    """A slope of 0.17 makes 1.7 GB of 10 GB of text, beside less than 0.3 GB at its start.

    Only cleaning has a slope: some numbers per document, and documents are short here.
    """
    flags: dict[str, Callable[[Path], tuple[object, ...]]] = {
        "tokenize": lambda out: ("--output", out, "--tokenizer", tokenizer_folder, "--workers", 1),
        "clean": lambda out: ("--output", out, "--workers", 1),
        "shard": lambda out: ("--output", out, "--lines", 1000),
    }
    sizes, peaks = [], []
    for documents in (SMALL, LARGE):
        file = tmp_path / f"{documents}.jsonl"
        sizes.append(write(file, documents))
        out = tmp_path / f"out-{documents}"
        peaks.append(peak("prepare", command, file, *flags[command](out)))
    slope = (peaks[1] - peaks[0]) / (sizes[1] - sizes[0])
    assert slope < 0.17, (sizes, peaks)
    assert peaks[0] < 300e6, peaks
