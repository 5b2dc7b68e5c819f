"""Floating-point operations that models need, and what a rank's GPU can do."""

from collections.abc import Sequence
from functools import cache

import torch
import torch.distributed as dist

from alignctl.config.precision import Precision
from alignctl.config.sections import Model
from alignctl.data.batch import TokenBatch
from alignctl.planning.cost import count_flops
from alignctl.planning.devices import device_called


def count_attended(batches: Sequence[TokenBatch]) -> float:
    """Return the tokens that each token attends to at most, on average: its document's length."""
    lengths = [n for batch in batches for n in batch.pieces.document_lengths]
    return sum(n * n for n in lengths) / max(1, sum(lengths))


def count_batches(
    model: Model,
    batches: Sequence[TokenBatch],
    *,
    has_logits: bool,
    is_whole: bool,
    is_learned: bool,
) -> float:
    """Count the operations that micro batches need of a model; see `count_flops`."""
    return count_flops(
        model,
        sum(batch.num_tokens for batch in batches),
        count_attended(batches),
        has_logits=has_logits,
        is_whole=is_whole,
        is_learned=is_learned,
    )


def measure_use(flops: float, seconds: float, precision: Precision) -> dict[str, float]:
    """Return MFU as an entry of a row of metrics.

    It is the share of what the GPUs can do in bf16, by their maker's data sheet, that the models
    themselves need: what is computed again does not count. It is left out without a GPU, with one
    that is not known, and in float32.

    Args:
        flops: Operations, over all ranks.
        seconds: How long they took.
        precision: Of the models.
    """
    peak = None if precision == "fp32" else peak_flops()
    return {} if peak is None else {"mfu": flops / seconds / dist.get_world_size() / peak}


@cache
def peak_flops() -> float | None:
    """Return what this rank's GPU can do in bf16, in FLOP/s; None without one that is known."""
    if not torch.cuda.is_available():
        return None
    known = device_called(torch.cuda.get_device_name())
    return None if known is None else known.tflops["bf16"] * 1e12
