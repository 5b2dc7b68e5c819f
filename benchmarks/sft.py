"""Supervised fine-tuning: tokens per second and peak memory of alignctl and of TRL's SFTTrainer.

    python benchmarks/sft.py                     # six minutes or so on two idle cores
    python benchmarks/sft.py --only "data parallel" --repeats 3 --json result.json

Everybody starts from the same 30M-parameter weights, reads the same documents, learns the same
tokens with the same AdamW in fp32, and takes about as many tokens into an optimizer step. alignctl
is the real command, `alignctl sft`. Each run has processes of its own; the contenders take turns,
and the median over the turns is shown. Nothing is asserted.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.lib import turns
from benchmarks.lib.race import Contender
from benchmarks.lib.workload import Workload

BIN = Path(sys.executable).parent


def main() -> None:
    """Make the workload, run the contenders in turns, print the table."""
    options = turns.flags(__doc__.split("\n", 1)[0], documents=1024).parse_args()
    with tempfile.TemporaryDirectory(prefix="alignctl-bench-") as folder:
        workload = Workload(
            folder=Path(folder) / "input",
            documents=options.documents,
            seq_length=1024,
            sequences_per_step=4,
            documents_per_step=16,
            warm_up=options.warm_up,
            steps=options.steps,
        )
        data = workload.make()
        print(
            f"data: {workload.documents:,} rows of {data['mean']:.0f} tokens (median "
            f"{data['median']:.0f}, longest {data['longest']}), "
            f"{100 * data['learned_tokens'] / data['tokens']:.0f} % learned; "
            f"{workload.warm_up} + {workload.steps} steps of {workload.documents_per_step} rows or "
            f"{workload.sequences_per_step} sequences of {workload.seq_length} tokens",
            flush=True,
        )
        contenders = [c for c in all_contenders(workload) if options.only in c.name]
        runs = turns.take_turns(contenders, workload, Path(folder), repeats=options.repeats)
    print(turns.summary(contenders, runs))
    if options.json:
        turns.write_json(options.json, workload, data, runs)


def all_contenders(workload: Workload) -> list[Contender]:
    """List both trainers, each with one process of two threads and with two processes of one."""
    return [
        _alignctl("alignctl, data parallel", workload, ranks=2),
        _trl("TRL packed, data parallel", workload, ranks=2, packing=True),
        _trl("TRL padded, data parallel", workload, ranks=2, packing=False),
        _alignctl("alignctl, two threads", workload, ranks=1),
        _trl("TRL packed, two threads", workload, ranks=1, packing=True),
        _trl("TRL padded, two threads", workload, ranks=1, packing=False),
    ]


def _alignctl(name: str, workload: Workload, *, ranks: int) -> Contender:
    def command(folder: Path) -> list[str]:
        return [
            *(str(BIN / "alignctl"), "sft", "--preset", str(workload.folder / "preset.yaml")),
            *("--load", str(workload.hf), "--data", str(workload.folder / "rows.jsonl")),
            *("--output", str(folder / "run"), "--nproc", str(ranks)),
            f"batch.micro_batch_size={workload.sequences_per_step // ranks}",
        ]

    return Contender(name, (ranks, 2 // ranks), command, {}, turns.alignctl_steps)


def _trl(name: str, workload: Workload, *, ranks: int, packing: bool) -> Contender:
    share = (workload.sequences_per_step if packing else workload.documents_per_step) // ranks
    # Packed sequences are laid end to end and share one square attention mask: one at a time is
    # fastest. Padded, fewer rows need less padding, more make better use of a core.
    micro_batch = 1 if packing else min(share, 8)
    more = ["--packing"] if packing else []
    return turns.trl_contender(
        name, "trl_sft", workload, ranks=ranks, share=share, micro_batch=micro_batch, more=more
    )


if __name__ == "__main__":
    main()
