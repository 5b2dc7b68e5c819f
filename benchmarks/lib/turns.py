"""What the benchmarks of training share: their flags, the turns of the contenders, the table."""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.lib.race import Contender, Run, Step, json_lines, race, table
from benchmarks.lib.workload import Workload

ROOT = Path(__file__).resolve().parents[2]


def flags(description: str, *, documents: int) -> argparse.ArgumentParser:
    """Make the parser of a benchmark's flags.

    Args:
        description: Of the program.
        documents: Rows of the data set, unless it is told otherwise.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps on the clock")
    parser.add_argument("--warm-up", type=int, default=1, help="steps before that")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each contender, in turns")
    parser.add_argument("--documents", type=int, default=documents, help="rows of the data set")
    parser.add_argument("--only", default="", help="contenders whose name contains this")
    parser.add_argument("--json", type=Path, help="also write the numbers of every run to FILE")
    return parser


def take_turns(
    contenders: Sequence[Contender], workload: Workload, folder: Path, *, repeats: int
) -> dict[str, list[Run]]:
    """Run all contenders after each other, as often as is wanted."""
    runs: dict[str, list[Run]] = {}
    for turn in range(repeats):
        for place, contender in enumerate(contenders):
            run = race(
                contender,
                folder / f"{turn}-{place}",
                warm_up=workload.warm_up,
                steps=workload.steps,
            )
            runs.setdefault(contender.name, []).append(run)
            print(
                f"  {contender.name}: {run.tokens_per_second:,.0f} tokens/s, "
                f"{run.core_seconds:.2f} core s/1k",
                flush=True,
            )
    return runs


def write_json(
    file: Path, workload: Workload, data: Mapping[str, float], runs: Mapping[str, list[Run]]
) -> None:
    """Write the numbers of every run."""
    result = {
        "workload": {**asdict(workload), "folder": None, **data},
        "runs": {name: [asdict(run) for run in found] for name, found in runs.items()},
    }
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def alignctl_steps(folder: Path) -> list[Step]:
    """Read what a run of alignctl in `folder/run` has done so far."""
    rows = json_lines(folder / "run" / "metrics.jsonl")
    return [Step(row["time"], row["tokens"], row["loss"]) for row in rows if row["kind"] == "train"]


def trl_contender(
    name: str,
    module: str,
    workload: Workload,
    *,
    ranks: int,
    share: int,
    micro_batch: int,
    more: Sequence[str],
) -> Contender:
    """Describe a trainer of TRL's.

    Args:
        name: What the table calls it.
        module: The program in benchmarks/lib.
        workload: What it is given.
        ranks: Processes.
        share: Rows of one rank in an optimizer step.
        micro_batch: Those it runs at once.
        more: Flags of the program.
    """

    def command(folder: Path) -> list[str]:
        start = [sys.executable]
        if ranks > 1:
            start += ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
            start += ["--nproc-per-node", str(ranks)]
        return [
            *start,
            *("-m", f"benchmarks.lib.{module}"),
            *("--input", str(workload.folder), "--output", str(folder)),
            *("--seq-length", str(workload.seq_length)),
            *("--steps", str(workload.warm_up + workload.steps)),
            *("--micro-batch", str(micro_batch), "--accumulation", str(share // micro_batch)),
            *more,
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


def summary(
    contenders: Sequence[Contender],
    runs: Mapping[str, list[Run]],
    *,
    tokens_per_sample: float | None = None,
) -> str:
    """Format the table: medians over the turns, and their ratio to the best TRL.

    Args:
        contenders: Those that ran.
        runs: Theirs, by name.
        tokens_per_sample: Of the data on average, where samples per second are wanted.
    """
    peers = [name for name in runs if name.startswith("TRL")]
    speed = {name: _median(found, "tokens_per_second") for name, found in runs.items()}
    cores = {name: _median(found, "core_seconds") for name, found in runs.items()}
    fastest = max((speed[name] for name in peers), default=None)
    thriftiest = min((cores[name] for name in peers), default=None)
    head = "|ranks x threads|tokens/s|ratio|core s/1k|ratio|GiB all|GiB rank|first loss|last loss"
    rows = [head.split("|")]
    if tokens_per_sample:
        rows[0].insert(2, "samples/s")
    for contender in contenders:
        name, found = contender.name, runs[contender.name]
        row = [
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
        if tokens_per_sample:
            row.insert(2, f"{speed[name] / tokens_per_sample:.2f}")
        rows.append(row)
    return (
        f"\n{table(rows)}\n\n"
        "ratio: to the best of the TRL rows, above 1 is better; core s/1k: processor seconds per "
        "1,000 tokens;\nGiB: peak resident memory, over all ranks and of the largest one"
    )


def _median(runs: Sequence[Run], field: str) -> float:
    values: list[Any] = [getattr(run, field) for run in runs]
    return float(statistics.median(values))
