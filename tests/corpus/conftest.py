import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.tiny import write_tokenizer

WORDS = ("the", "weather", "that", "this", "moth", "naïve", "鲸鱼", "\n", "  ", "🐳")


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer."""
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def write_texts(tmp_path: Path) -> Callable[..., Path]:
    """Writes documents as JSON lines and returns the file."""

    def write(texts: Sequence[str], name: str = "train.jsonl") -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return file

    return write


def some_texts(count: int) -> list[str]:
    """Texts of different lengths, in several scripts; one in ten is empty."""
    return [
        " ".join(WORDS[(i * i + j) % len(WORDS)] for j in range(3 * i % 40)) if i % 10 else ""
        for i in range(count)
    ]
