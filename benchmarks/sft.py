"""Supervised fine-tuning: tokens per second and peak memory of alignctl and of TRL's SFTTrainer.

    python benchmarks/sft.py                     # six minutes or so on two idle cores
    python benchmarks/sft.py --only "data parallel" --repeats 3 --json result.json

Everybody starts from the same 30M-parameter weights, reads the same documents, learns the same
tokens with the same AdamW in fp32, and takes about as many tokens into an optimizer step. alignctl
is the real command, `alignctl sft`. Each run has processes of its own; the contenders take turns,
and the median over the turns is shown. Nothing is asserted.
"""

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.lib.race import Contender, Run, Step, json_lines, race, table  # noqa: E402
from benchmarks.lib.workload import Workload  # noqa: E402

BIN = Path(sys.executable).parent


def main() -> None:
    """Makes the workload, runs the contenders in turns, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps on the clock")
    parser.add_argument("--warm-up", type=int, default=1, help="steps before that")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each contender, in turns")
    parser.add_argument("--documents", type=int, default=1024, help="rows of the data set")
    parser.add_argument("--only", default="", help="contenders whose name contains this")
    parser.add_argument("--json", type=Path, help="also write the numbers of every run to FILE")
    options = parser.parse_args()
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
        runs: dict[str, list[Run]] = {}
        contenders = [c for c in all_contenders(workload) if options.only in c.name]
        for turn in range(options.repeats):
            for place, contender in enumerate(contenders):
                run = race(
                    contender,
                    Path(folder) / f"{turn}-{place}",
                    warm_up=workload.warm_up,
                    steps=workload.steps,
                )
                runs.setdefault(contender.name, []).append(run)
                print(f"  {contender.name}: {run.tokens_per_second:,.0f} tokens/s", flush=True)
    print(summary(contenders, runs))
    if options.json:
        result = {
            "workload": {**asdict(workload), "folder": None, **data},
            "runs": {name: [asdict(run) for run in found] for name, found in runs.items()},
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def all_contenders(workload: Workload) -> list[Contender]:
    """Both trainers, each with one process of two threads and with two processes of one."""
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

    def read(folder: Path) -> list[Step]:
        rows = json_lines(folder / "run" / "metrics.jsonl")
        return [
            Step(row["time"], row["tokens"], row["loss"]) for row in rows if row["kind"] == "train"
        ]

    return Contender(name, (ranks, 2 // ranks), command, {}, read)


def _trl(name: str, workload: Workload, *, ranks: int, packing: bool) -> Contender:
    share = (workload.sequences_per_step if packing else workload.documents_per_step) // ranks
    # Packed sequences are laid end to end and share one square attention mask: one at a time is
    # fastest. Padded, fewer rows need less padding, more make better use of a core.
    micro_batch = 1 if packing else min(share, 8)

    def command(folder: Path) -> list[str]:
        start = [sys.executable]
        if ranks > 1:
            start += ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
            start += ["--nproc-per-node", str(ranks)]
        return [
            *start,
            *("-m", "benchmarks.lib.trl_sft"),
            *("--input", str(workload.folder), "--output", str(folder)),
            *("--seq-length", str(workload.seq_length)),
            *("--steps", str(workload.warm_up + workload.steps)),
            *("--micro-batch", str(micro_batch), "--accumulation", str(share // micro_batch)),
            *(["--packing"] if packing else []),
        ]

    def read(folder: Path) -> list[Step]:
        ranks_rows = [json_lines(folder / f"rank_{rank}.jsonl") for rank in range(ranks)]
        return [
            Step(rows[0]["time"], sum(row["tokens"] for row in rows), rows[0]["loss"])
            for rows in zip(*ranks_rows, strict=False)
        ]

    threads = 2 // ranks
    environ = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    return Contender(name, (ranks, threads), command, environ, read)


def summary(contenders: list[Contender], runs: dict[str, list[Run]]) -> str:
    """The table: medians over the turns, and their ratio to the better TRL."""
    peers = [name for name in runs if name.startswith("TRL")]
    speed = {name: _median(found, "tokens_per_second") for name, found in runs.items()}
    cores = {name: _median(found, "core_seconds") for name, found in runs.items()}
    fastest = max((speed[name] for name in peers), default=None)
    thriftiest = min((cores[name] for name in peers), default=None)
    head = "|ranks x threads|tokens/s|ratio|core s/1k|ratio|GiB all|GiB rank|first loss|last loss"
    rows = [head.split("|")]
    for contender in contenders:
        name, found = contender.name, runs[contender.name]
        rows.append(
            [
                name,
                "{} x {}".format(*contender.processes),
                f"{speed[name]:,.0f}",
                f"{speed[name] / fastest:.2f}" if fastest else "-",
                f"{cores[name]:.2f}",
                f"{thriftiest / cores[name]:.2f}" if thriftiest else "-",
                f"{_median(found, 'memory_sum') / 2**30:.2f}",
                f"{_median(found, 'memory_max') / 2**30:.2f}",
                f"{found[0].first_loss:.3f}",
                f"{_median(found, 'last_loss'):.3f}",
            ]
        )
    return (
        f"\n{table(rows)}\n\n"
        "ratio: to the best of the TRL rows, above 1 is better; core s/1k: processor seconds per "
        "1,000 tokens;\nGiB: peak resident memory, over all ranks and of the largest one"
    )


def _median(runs: list[Run], field: str) -> float:
    values: list[float] = [getattr(run, field) for run in runs]
    return statistics.median(values)


if __name__ == "__main__":
    main()
