"""Sums of one and two steps in words: prompts that a model of 135M parameters can learn from.

    python examples/word_sums.py data/word-sums

writes train.jsonl and validation.jsonl, chats with the right number beside them, which the rule of
grpo compares answers with. No question is in both files.
"""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SYSTEM = "Write the sum, then the answer."
NAMES = (
    *("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry"),
    *("Iris", "Jack", "Kate", "Leo", "Mia", "Noah", "Olive", "Paul"),
)
THINGS = (
    *("apples", "books", "cards", "coins", "cookies"),
    *("marbles", "pencils", "shells", "stamps", "stickers"),
)
TRAIN, VALIDATION = 1000, 64


def draw_one_step(draw: random.Random) -> tuple[str, int]:
    """Draw a question that one sum answers, and its answer."""
    first, second = draw.sample(NAMES, 2)
    things, a, b = draw.choice(THINGS), draw.randint(2, 9), draw.randint(2, 9)
    form = draw.randrange(3)
    if form == 0:
        text = f"{first} has {a} {things}. {second} gives {first} {b} more."
        return f"{text} How many {things} does {first} have now?", a + b
    if form == 1:
        text = f"{first} has {a} {things} and {second} has {b} {things}."
        return f"{text} How many {things} do they have together?", a + b
    text = f"{first} has {a + b} {things}. {first} gives {b} of them to {second}."
    return f"{text} How many {things} does {first} have left?", a


def draw_two_steps(draw: random.Random) -> tuple[str, int]:
    """Draw a question that takes two sums, and its answer."""
    name, things = draw.choice(NAMES), draw.choice(THINGS)
    a, b, c = (draw.randint(2, 9) for _ in range(3))
    asked = f"How many {things} does {name} have now?"
    if draw.randrange(2):
        return f"{name} has {a} {things}, finds {b} more and then buys {c} more. {asked}", a + b + c
    lost = min(c, a + b - 1)
    return f"{name} has {a} {things}, finds {b} more and then loses {lost}. {asked}", a + b - lost


def draw_rows(seed: int) -> Iterator[dict[str, Any]]:
    """Draw chats without end, every third of two steps, none of them twice."""
    draw, seen = random.Random(seed), set[str]()
    while True:
        question, answer = (draw_two_steps if len(seen) % 3 == 2 else draw_one_step)(draw)
        if question not in seen:
            seen.add(question)
            turns = [("system", SYSTEM), ("user", question)]
            messages = [{"role": role, "content": content} for role, content in turns]
            yield {"messages": messages, "answer": str(answer), "eval_func": "math_rule"}


def main(folder: Path) -> None:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = draw_rows(seed=1234)
    for name, count in (("train", TRAIN), ("validation", VALIDATION)):
        lines = [json.dumps(next(rows)) + "\n" for _ in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
