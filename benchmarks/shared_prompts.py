"""A shared prompt computed once: seconds and memory of a training step, and the limit of both.

    python benchmarks/shared_prompts.py                       # a quarter of an hour of a core
    python benchmarks/shared_prompts.py --prompt 256 --group 8 --answer 128

The model of sft.py on one process of one thread learns a group of answers to one prompt, with the
prompt computed for each and once. Every cell of the table is measured by a process of its own. The
limit is the ratio of the tokens: what a step would gain if all of it were work per token. Nothing
is asserted.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from alignctl.data.batch import Document, TokenBatch
from benchmarks.lib.one_step import measure_in_a_process, measure_step
from benchmarks.lib.race import table
from benchmarks.lib.workload import VOCAB_SIZE

PROMPTS, GROUPS, ANSWER = (64, 256, 1024), (2, 8, 16), 128


def main() -> None:
    """Measure each cell twice, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--prompt", type=int, nargs="+", default=PROMPTS, help="tokens of a prompt")
    parser.add_argument("--group", type=int, nargs="+", default=GROUPS, help="answers to it")
    parser.add_argument("--answer", type=int, default=ANSWER, help="tokens of each")
    parser.add_argument("--steps", type=int, default=2, help="on the clock, after another one")
    parser.add_argument("--cell", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell is not None:
        seq_length, steps = (options.cell.pop(name) for name in ("seq_length", "steps"))
        found = measure_step(_batches(**options.cell), seq_length=seq_length, steps=steps)
        print(json.dumps(found))
        return
    rows = [["prompt", "answers", "tokens", "limit", "core s", "once", "ratio", "GiB", "once"]]
    for prompt in options.prompt:
        for group in options.group:
            cell = {"prompt": prompt, "group": group, "answer": options.answer}
            cell |= {"seq_length": prompt + options.answer, "steps": options.steps}
            apart, once = (
                measure_in_a_process(__file__, {**cell, "share_prompts": share_prompts})
                for share_prompts in (False, True)
            )
            rows.append(
                [
                    str(prompt),
                    f"{group} x {options.answer}",
                    f"{apart['tokens']:,}",
                    f"{apart['tokens'] / once['tokens']:.2f}",
                    f"{apart['seconds']:.2f}",
                    f"{once['seconds']:.2f}",
                    f"{apart['seconds'] / once['seconds']:.2f}",
                    f"{apart['gib']:.2f}",
                    f"{once['gib']:.2f}",
                ]
            )
            print(f"  {' '.join(rows[-1])}", flush=True)
    print(f"\n{table(rows)}")


def _batches(prompt: int, group: int, answer: int, share_prompts: bool) -> list[TokenBatch]:
    """Make one micro batch of documents of one prompt of random tokens and different answers."""
    rng = np.random.default_rng(1)
    question = rng.integers(0, VOCAB_SIZE, prompt, dtype=np.int32)
    documents = [
        Document(
            np.concatenate([question, rng.integers(0, VOCAB_SIZE, answer, dtype=np.int32)]),
            np.arange(prompt + answer) >= prompt,
            number,
        )
        for number in range(group)
    ]
    groups = [documents] if share_prompts else [[each] for each in documents]
    return [TokenBatch.sharing(groups)]


if __name__ == "__main__":
    main()
