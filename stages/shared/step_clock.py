"""How long the parts of an optimizer step take, how fast it is, and how well it uses the GPUs."""

import time
from collections.abc import Sequence
from functools import cache

import torch
import torch.distributed as dist

from alignctl.config.run import TrainingConfig
from alignctl.config.sections import Head
from alignctl.data.batch import TokenBatch
from alignctl.engines.metrics import StepMetrics
from alignctl.planning.cost import count_flops
from alignctl.planning.devices import device_called


class StepClock:
    """Measures the parts of one step by the clock; nothing waits for a GPU because of it.

    An engine has read the loss when its step returns, so the device is done by then.
    """

    def __init__(self, config: TrainingConfig, head: Head) -> None:
        self._config, self._head = config, head
        self._started = self._latest = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def note(self, part: str) -> None:
        """Note that a part has just ended."""
        now = time.perf_counter()
        self._seconds[part] = now - self._latest
        self._latest = now

    def row(self, result: StepMetrics, batches: Sequence[TokenBatch]) -> dict[str, float]:
        """Return the entries of a row of metrics: tokens per second, seconds by part, and MFU.

        MFU is the share of what the GPUs can do in bf16, by their maker's data sheet, that the
        model itself needs: what is computed again does not count. It is left out without a GPU,
        with one that is not known, and in float32.

        Args:
            result: What the engine found.
            batches: This rank's micro batches, of which the lengths of documents are taken.
        """
        seconds = self._latest - self._started
        row = {"tokens_per_second": result.num_tokens / seconds}
        row |= {f"seconds_{part}": each for part, each in self._seconds.items()}
        if self._config.precision != "fp32" and (peak := peak_flops()) is not None:
            lengths = [n for batch in batches for n in batch.pieces.document_lengths]
            flops = count_flops(
                self._config.architecture,
                min(result.num_tokens, result.num_computed_tokens),
                sum(n * n for n in lengths) / max(1, sum(lengths)),
                has_logits=self._head == "lm",
                is_whole=self._config.lora is None,
            )
            row["mfu"] = flops / seconds / dist.get_world_size() / peak
        return row


@cache
def peak_flops() -> float | None:
    """Return what this rank's GPU can do in bf16, in FLOP/s; None without one that is known."""
    if not torch.cuda.is_available():
        return None
    known = device_called(torch.cuda.get_device_name())
    return None if known is None else known.tflops["bf16"] * 1e12
