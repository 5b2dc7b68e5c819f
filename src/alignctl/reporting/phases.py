"""How long each phase of a step takes, and how much memory it needs."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Phases:
    """Seconds and peak memory of named parts of a step, for its row of metrics."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_gib: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure a block; blocks of one name add up."""
        import torch

        is_gpu = torch.cuda.is_available()
        if is_gpu:
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        yield
        if is_gpu:
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated()
        else:  # without a GPU only the process's high-water mark is known
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        took = time.perf_counter() - started
        self.seconds[name] = self.seconds.get(name, 0.0) + took
        self.peak_gib[name] = max(self.peak_gib.get(name, 0.0), peak / 2**30)

    @property
    def row(self) -> dict[str, float]:
        """Entries of a row of metrics: `seconds_NAME` and `memory_gib_NAME`."""
        times = {f"seconds_{name}": value for name, value in self.seconds.items()}
        return times | {f"memory_gib_{name}": value for name, value in self.peak_gib.items()}
