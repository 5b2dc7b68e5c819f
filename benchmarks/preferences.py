"""Reward models and DPO: samples per second and peak memory of alignctl and of TRL's trainers.

    python benchmarks/preferences.py                   # ten minutes or so on two idle cores
    python benchmarks/preferences.py --method dpo --repeats 3 --json result.json
    python benchmarks/preferences.py --data harmless.jsonl  # dialogues of the HH data set

The counterpart of sft.py for pairs of answers: the same 30M parameters, the same lengths, AdamW and
precision for everybody. alignctl runs twice: prompts computed once, and for each answer. The log-
probabilities of DPO's reference are computed before the clock starts by both. Nothing is asserted.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.lib import turns
from benchmarks.lib.race import Contender
from benchmarks.lib.real_rows import read_pairs
from benchmarks.lib.workload import Workload

BIN = Path(sys.executable).parent
RANKS = 2
METHODS = ("reward", "dpo")


def main() -> None:
    """Make the workload, run the contenders in turns, print a table for each method."""
    parser = turns.flags(__doc__.split("\n", 1)[0], documents=64)
    parser.add_argument("--method", choices=METHODS, action="append", help="of these only")
    parser.add_argument("--micro-batch", type=int, default=2, help="pairs at once, of alignctl")
    parser.add_argument("--data", type=Path, help="lengths and shared beginnings of HH's rows")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="alignctl-bench-") as folder:
        workload = Workload(
            folder=Path(folder) / "input",
            documents=options.documents,
            seq_length=1024,
            sequences_per_step=8,
            documents_per_step=8,
            warm_up=options.warm_up,
            steps=options.steps,
        )
        data = workload.make_pairs(read_pairs(options.data) if options.data else None)
        print(
            f"data: {workload.documents:,} pairs of answers, each {data['mean']:.0f} tokens with "
            f"its prompt (median {data['median']:.0f}, longest {data['longest']}), "
            f"{data['tokens'] / data['needed']:.2f} times the tokens that are needed; "
            f"{workload.warm_up} + {workload.steps} steps of {workload.documents_per_step} pairs",
            flush=True,
        )
        for method in options.method or METHODS:
            scratch = Path(folder) / method
            scratch.mkdir()
            contenders = [
                each
                for each in all_contenders(workload, method, options.micro_batch)
                if options.only in each.name
            ]
            runs = turns.take_turns(contenders, workload, scratch, repeats=options.repeats)
            print(f"\n{method}")
            print(turns.summary(contenders, runs, tokens_per_sample=2 * data["mean"]))
            if options.json:
                file = options.json.with_stem(f"{options.json.stem}-{method}")
                turns.write_json(file, workload, data, runs)


def all_contenders(workload: Workload, method: str, micro_batch: int) -> list[Contender]:
    """List alignctl, and TRL with little padding in several ways: two processes of one thread."""
    return [
        _alignctl(workload, method, micro_batch),
        _alignctl(workload, method, micro_batch, share_prompts=False),
        _trl("TRL, a pair at a time", workload, method, micro_batch=1),
        _trl("TRL, 4 pairs", workload, method, micro_batch=4),
        _trl("TRL, 4 pairs by length", workload, method, micro_batch=4, by_length=True),
    ]


def _alignctl(
    workload: Workload, method: str, micro_batch: int, *, share_prompts: bool = True
) -> Contender:
    def command(folder: Path) -> list[str]:
        return [
            *(str(BIN / "alignctl"), method, "--preset", str(workload.folder / "preset.yaml")),
            *("--load", str(workload.hf), "--data", str(workload.folder / "pairs.jsonl")),
            *("--output", str(folder / "run"), "--nproc", str(RANKS)),
            f"batch.micro_batch_size={micro_batch}",
            f"batch.share_prompts={str(share_prompts).lower()}",
        ]

    name = "alignctl" if share_prompts else "alignctl, not shared"
    return Contender(name, (RANKS, 1), command, {}, turns.alignctl_steps)


def _trl(
    name: str, workload: Workload, method: str, *, micro_batch: int, by_length: bool = False
) -> Contender:
    return turns.trl_contender(
        name,
        "trl_preferences",
        workload,
        ranks=RANKS,
        share=workload.documents_per_step // RANKS,
        micro_batch=micro_batch,
        more=["--method", method, *(["--by-length"] if by_length else [])],
    )


if __name__ == "__main__":
    main()
