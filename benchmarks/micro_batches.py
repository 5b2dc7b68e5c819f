"""Micro batches by a number of answers and by a budget of tokens: seconds and memory of a step.

    python benchmarks/micro_batches.py            # some minutes of a core
    python benchmarks/micro_batches.py --data train.jsonl   # questions of GSM8K as prompts

The model of sft.py on one process of one thread learns 8 answers to each of 8 prompts in a step;
answers have log-normal lengths, as those of a policy differ, and prompts are computed once. Each
row of the table is measured by a process of its own. Nothing is asserted.
"""

import argparse
import json
import sys
from itertools import islice
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alignctl.data.batch import Document, TokenBatch, count_computed
from alignctl.data.micro_batches import dealt_groups
from benchmarks.lib.one_step import measure_in_a_process, measure_step
from benchmarks.lib.prompts import draw_prompts
from benchmarks.lib.race import table
from benchmarks.lib.real_rows import read_questions
from benchmarks.lib.workload import VOCAB_SIZE

PROMPTS, SAMPLES, PROMPT_TOKENS = 8, 8, 64
LONGEST_PROMPT, LONGEST = 256, 768
NUMBERS, BUDGETS = (1, 2, 4, 8), (1024, 1536, 2048, 3072)


def main() -> None:
    """Measure each way to lay the micro batches, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--number", type=int, nargs="*", default=NUMBERS, help="answers")
    parser.add_argument("--budget", type=int, nargs="*", default=BUDGETS, help="tokens")
    parser.add_argument("--steps", type=int, default=2, help="on the clock, after another one")
    parser.add_argument("--data", type=Path, help="questions of GSM8K, as prompts")
    parser.add_argument("--cell", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell is not None:
        print(json.dumps(_measure(**options.cell)))
        return
    rows = [["micro batches by", "number", "tokens, least", "most", "core s", "GiB"]]
    ways = [("micro_batch_size", number) for number in options.number]
    ways += [("micro_batch_tokens", budget) for budget in options.budget]
    for name, most in ways:
        cell = {"name": name, "most": most, "steps": options.steps, "data": str(options.data or "")}
        found = measure_in_a_process(__file__, cell)
        laid = f"{found['number']:.0f}", f"{found['least']:,.0f}", f"{found['most']:,.0f}"
        rows.append([f"{name}={most}", *laid, f"{found['seconds']:.2f}", f"{found['gib']:.2f}"])
        print(f"  {' '.join(rows[-1])}", flush=True)
    print(f"\n{table(rows)}")


def _measure(name: str, most: int, steps: int, data: str) -> dict[str, float]:
    batches = _lay(**{"micro_batch_size": 1, name: most}, data=data)
    tokens = [batch.num_tokens for batch in batches]
    found = measure_step(batches, seq_length=LONGEST_PROMPT + LONGEST, steps=steps)
    return found | {"number": len(batches), "least": min(tokens), "most": max(tokens)}


def _lay(
    micro_batch_size: int, data: str, micro_batch_tokens: int | None = None
) -> list[TokenBatch]:
    documents = _draw(data)
    return [
        TokenBatch.sharing([[documents[place] for place in part] for part in batch])
        for batch in dealt_groups(
            [range(start, start + SAMPLES) for start in range(0, len(documents), SAMPLES)],
            lambda part: count_computed([documents[place] for place in part]),
            micro_batch_size=micro_batch_size,
            micro_batch_tokens=micro_batch_tokens,
            dp_rank=0,
            dp_size=1,
        )
    ]


def _draw(data: str) -> list[Document]:
    """Draw answers with a median of 116 tokens, sigma 0.9, as sft.py's are, none over LONGEST."""
    rng = np.random.default_rng(1)
    questions = read_questions(Path(data)) if data else draw_prompts(PROMPT_TOKENS)
    documents: list[Document] = []
    fitting = (question for question in questions if len(question) < LONGEST_PROMPT)
    for question in islice(fitting, PROMPTS):
        for length in np.minimum(rng.lognormal(np.log(116), 0.9, SAMPLES), LONGEST).astype(int):
            answer = rng.integers(0, VOCAB_SIZE, max(length, 1))
            tokens = np.concatenate([question, answer]).astype(np.int32)
            learned = np.arange(len(tokens)) >= len(question)
            documents.append(Document(tokens, learned, len(documents)))
    return documents


if __name__ == "__main__":
    main()
