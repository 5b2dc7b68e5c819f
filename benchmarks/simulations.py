"""Every preset and stage, simulated on GPUs of 80 GiB, as a table in Markdown.

python benchmarks/simulations.py [PRESET ...]

Each is simulated in a process of its own, and kinds of ranks side by side in others. The last two
columns are what all of them take of the processor, imports included, and the largest one's memory.
"""

import multiprocessing
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from alignctl.config.presets import library as presets
from alignctl.config.presets.load import STAGES, resolve
from alignctl.planning.job import predict
from alignctl.planning.memory import GIB
from alignctl.stages.shared.simulation import simulate


def row(name: str, stage: str) -> str:
    """Make a line of the table: held bytes of the largest model, the others at the peak."""
    config = resolve(STAGES[stage], name, {"output": Path("runs")})
    report, computed = simulate(config), predict(config)
    # Of this process, and of those that it started for kinds of ranks.
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(each.ru_utime + each.ru_stime for each in used)
    resident = max(each.ru_maxrss for each in used) / 2**20  # Linux counts in KiB
    rank = max(report.ranks, key=lambda rank: rank.peak)
    phase = max(rank.phases, key=lambda name: rank.phases[name].peak)
    largest = max(rank.models.values(), key=lambda model: model.total)
    parts = [largest.weights, largest.gradients, largest.optimizer]
    parts += [rank.phases[phase].activations, rank.phases[phase].sampler, rank.peak]
    parallel = config.parallel
    layout = f"{parallel.tp} x {parallel.pp} x {config.data_parallel_size}"
    cells = " | ".join(f"{part / GIB:.1f}" for part in parts)
    fits = "yes" if report.fits else "no"
    error = computed.peak_gib / report.peak_gib - 1
    return (
        f"| {name} {config.stage} | {config.world_size} | {layout} | {phase} | {cells} | {fits} | "
        f"{computed.peak_gib:.1f} | {error:+.1%} | {seconds:.0f} | {resident:.2f} |"
    )


def main(names: list[str]) -> None:
    """Print the table."""
    print(
        "| | GPUs | TP x PP x DP | largest in | weights | gradients | optimizer | activations | "
        "sampler | peak GiB | fits | `plan` | error | core s | RSS GiB |"
    )
    print("|---" * 15 + "|")
    for name in names or [each for each in presets.names() if not each.startswith("tiny")]:
        for stage in STAGES:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                print(pool.submit(row, name, stage).result(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
