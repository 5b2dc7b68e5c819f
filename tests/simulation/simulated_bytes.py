"""Simulates and computes cases of (stage, preset, overrides) in a process of their own."""

import json
import resource
import sys
import time
from contextlib import nullcontext
from typing import Any

from alignctl.planning.job import kinds_of_ranks, predict
from alignctl.planning.report import Report
from alignctl.stages.shared.simulation import simulate
from tests.simulation import shared
from tests.simulation.real_bytes import SHARED, config_of


def main(cases: list[list[Any]], *, is_gpu: bool) -> None:
    """Prints a JSON row for each case."""
    for case in cases:
        config = config_of(*case)
        started = time.perf_counter()
        with shared.in_its_place() if SHARED in case[2] else nullcontext():
            report = simulate(config, is_gpu=is_gpu)
        row = {
            "seconds": time.perf_counter() - started,
            "resident_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "numbers": list(kinds_of_ranks(config).values()),
            "simulated": plain(report),
            "computed": plain(predict(config)),
        }
        print(json.dumps(row), flush=True)


def plain(report: Report) -> dict[str, Any]:
    """A report as JSON has it."""
    return {
        "fits": report.fits,
        "verdict": report.verdict,
        "peak_gib": report.peak_gib,
        "ranks": [
            {
                "models": {role: vars(model) for role, model in rank.models.items()},
                "phases": {
                    name: {"peak": phase.peak, "activations": phase.activations}
                    for name, phase in rank.phases.items()
                },
            }
            for rank in report.ranks
        ],
    }


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), is_gpu=sys.argv[2] == "gpu")
