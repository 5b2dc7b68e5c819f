"""Small benchmarks for tests: questions of every category, and answers to them."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from alignctl.evaluation.mt_bench.questions import Question

CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem")


def question(
    number: int, category: str = "writing", turns: Sequence[str] | None = None
) -> Question:
    """A question with references."""
    texts = tuple(turns or (f"First of {number}?", f"Second of {number}?"))
    return Question(number, number, category, texts, ("Right.", "Right too."), f"q.jsonl:{number}")


def write_rows(file: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """Writes JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def write_answers(file: Path, questions: Iterable[int | str], say: str) -> Path:
    """Answers of two turns in FastChat's format; each text is told apart from every other."""
    return write_rows(
        file,
        (
            {
                "question_id": number,
                "model_id": file.stem,
                "choices": [{"index": 0, "turns": [f"{say} {number} one", f"{say} {number} two"]}],
            }
            for number in questions
        ),
    )
