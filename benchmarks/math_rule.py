"""`math_rule` against answers with a verdict of our own: false positives and negatives by class.

    python benchmarks/math_rule.py
    python benchmarks/math_rule.py --gsm8k gsm8k/train.jsonl

The table is `tests/rewards/labelled_answers.toml`: what a completion says, a reference, and whether
the one is the other. With `--gsm8k`, every solution is also held against its own answer, against
the next row's, which is wrong unless the numbers agree, and, without its `#### 72`, against its own
again: then the answer is only the last number of a text. Answers are judged as in training, by
processes with a limit.
"""

import argparse
import json
import tomllib
from fractions import Fraction
from pathlib import Path

from alignctl.rewards.workers import RuleWorkers, Task

TABLE = Path(__file__).resolve().parents[1] / "tests" / "rewards" / "labelled_answers.toml"
SECONDS = 3.0


def main() -> None:
    """Print the table of the labelled rows, each row that is judged otherwise, and GSM8K's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gsm8k", type=Path, help="JSON lines of question and answer")
    arguments = parser.parse_args()
    with RuleWorkers(num_workers=2, limit_seconds=SECONDS) as workers:
        print_labelled(workers)
        if arguments.gsm8k is not None:
            print_gsm8k(workers, arguments.gsm8k)


def print_labelled(workers: RuleWorkers) -> None:
    """Print for each class of answers how many are judged otherwise than they are labelled."""
    classes = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    others: list[str] = []
    totals = [0, 0, 0, 0]
    print(f"{'class':16} {'right':>6} {'wrong':>6} {'false positives':>16} {'false negatives':>16}")
    for name, rows in classes.items():
        verdicts = workers.verdicts([Task(text, answer, "math_rule") for text, answer, _ in rows])
        counts = [0, 0, 0, 0]
        for (text, answer, is_right), verdict in zip(rows, verdicts, strict=True):
            counts[0 if is_right else 1] += 1
            if (verdict.reason == "correct") != is_right:
                counts[3 if is_right else 2] += 1
                others.append(f"{verdict.reason}: {text!r} for {answer!r}")
        print(f"{name:16} {counts[0]:6} {counts[1]:6} {counts[2]:16} {counts[3]:16}")
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
    print(f"{'all':16} {totals[0]:6} {totals[1]:6} {totals[2]:16} {totals[3]:16}")
    print(f"false negatives: {totals[3] / totals[0]:.2%} of the right ones", *others, sep="\n")


def print_gsm8k(workers: RuleWorkers, path: Path) -> None:
    """Print how GSM8K's own solutions are judged."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    texts = [row["answer"] for row in rows]
    answers = [text.rpartition("####")[2].strip().replace(",", "") for text in texts]
    others = answers[1:] + answers[:1]
    bare = [text.rpartition("####")[0] for text in texts]
    is_same = [Fraction(a) == Fraction(b) for a, b in zip(answers, others, strict=True)]

    def right(completions: list[str], references: list[str]) -> list[bool]:
        tasks = [Task(*pair, "math_rule") for pair in zip(completions, references, strict=True)]
        return [verdict.reason == "correct" for verdict in workers.verdicts(tasks)]

    wrongly = sum(a and not b for a, b in zip(right(texts, others), is_same, strict=True))
    print(f"GSM8K, {len(rows)} solutions: right {sum(right(texts, answers))}")
    print(f"  with the next row's answer, where that is another: right {wrongly}")
    print(f"  without the mark: right {sum(right(bare, answers))}")


if __name__ == "__main__":
    main()
