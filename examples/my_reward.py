"""Rewards of one's own, to start from: three functions in one file.

    alignctl rewards test examples/my_reward.py --data answers.jsonl
    alignctl grpo ... score.source=functions \
      'score.functions=[{file: examples/my_reward.py}, {file: examples/my_reward.py, name: brevity,
      weight: 0.1, batched: true}]'

`prompt` is what was asked, `completion` all that the model wrote, and `row` the whole row of the
prompt: whatever keys your data have. What raises, takes too long or is no finite number counts as a
failure and costs no other answer.
"""

from collections.abc import Sequence
from typing import Any


def score(prompt: str, completion: str, row: dict[str, Any]) -> dict[str, float]:
    """Reward an answer that holds the row's `answer`; other numbers beside the score are told."""
    expected = str(row["answer"]).split("####")[-1].strip()
    return {"score": float(expected in completion), "words": len(completion.split())}


def brevity(
    prompts: Sequence[str], completions: Sequence[str], rows: Sequence[dict[str, Any]]
) -> list[float]:
    """Take a point for each hundred characters: lists in, a list out, with `batched: true`."""
    return [-len(completion) / 100 for completion in completions]


def form(prompt: str, completion: str, row: dict[str, Any]) -> float:
    """Reward an answer that ends its last line as a sentence ends."""
    return 1.0 if completion.rstrip().endswith((".", "!", "?")) else 0.0
