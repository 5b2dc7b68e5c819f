"""The sums in words that a real model learns from."""

import json
import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "examples" / "word_sums.py"
TAKEN_AWAY = ("of them to", "loses")


def solve(question: str) -> int:
    """The sum of all numbers, of which those that are given away or lost count against it."""
    total = 0
    for part in re.split(r"[.,]| and ", question):
        for number in re.findall(r"\d+", part):
            total += -int(number) if any(word in part for word in TAKEN_AWAY) else int(number)
    return total


def test_every_answer_is_right_and_no_question_is_in_both_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, SCRIPT, tmp_path], check=True)
    asked = []
    for name, count in (("train", 1000), ("validation", 64)):
        lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        assert len(lines) == count
        for record in map(json.loads, lines):
            question = record["messages"][-1]["content"]
            asked.append(question)
            assert int(record["answer"]) == solve(question) > 0, question
    assert len(set(asked)) == len(asked)
