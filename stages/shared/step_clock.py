"""How long the parts of an optimizer step take, how fast it is, and how well it uses the GPUs."""

import time
from collections.abc import Sequence

from alignctl.config.run import TrainingConfig
from alignctl.config.sections import Head
from alignctl.data.batch import TokenBatch
from alignctl.engines.flops import count_attended, measure_use
from alignctl.engines.metrics import StepMetrics
from alignctl.planning.cost import count_flops


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

        Args:
            result: What the engine found.
            batches: This rank's micro batches, of which the lengths of documents are taken.
        """
        seconds = self._latest - self._started
        row = {"tokens_per_second": result.num_tokens / seconds}
        row |= {f"seconds_{part}": each for part, each in self._seconds.items()}
        flops = count_flops(
            self._config.architecture,
            min(result.num_tokens, result.num_computed_tokens),
            count_attended(batches),
            has_logits=self._head == "lm",
            is_whole=self._config.lora is None,
        )
        return row | measure_use(flops, seconds, self._config.precision)
