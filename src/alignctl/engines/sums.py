"""What ranks find, put together: the numbers of a step, and a number for each document."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from alignctl.algorithms.loss import LossTerms, Output, Scores, Values
from alignctl.algorithms.pairs import document_sums
from alignctl.algorithms.samples import Segments, select
from alignctl.data.batch import TokenBatch
from alignctl.engines.device import DEVICE, to_device
from alignctl.engines.metrics import StepMetrics


def step_metrics(
    terms: Sequence[LossTerms],
    names: Sequence[str],
    batches: Sequence[TokenBatch],
    *,
    is_stop_requested: bool,
) -> StepMetrics:
    """Add up loss, weight and metrics over micro batches and ranks: one all-reduce.

    Args:
        terms: Of this rank's micro batches; none where another rank has the same ones.
        names: Of the loss's metrics.
        batches: This rank's micro batches; none where another rank has the same ones.
        is_stop_requested: Whether this rank was asked to stop.
    """
    known = np.zeros(5 + len(names))
    known[0] = is_stop_requested
    known[-2] = sum(batch.num_document_tokens for batch in batches)
    known[-1] = sum(batch.num_tokens for batch in batches)
    values = to_device(known)
    for found in terms:  # summed where they are: the host waits once, below
        numbers = [found.total, found.weight, *(found.metrics[name] for name in names)]
        values[1 : 3 + len(names)] += torch.stack([each.double() for each in numbers])
    dist.all_reduce(values)
    stop, total, weight, *metrics, tokens, computed = values.tolist()
    divisor = weight or 1.0
    return StepMetrics(
        loss=total / divisor,
        weight=weight,
        num_tokens=tokens,
        num_computed_tokens=computed,
        metrics={name: value / divisor for name, value in zip(names, metrics, strict=True)},
        grad_norm=None,
        is_stop_requested=stop > 0,
    )


def reduce_documents(output: Output | Scores | Values, batch: TokenBatch) -> Tensor:
    """Return one number per document of a batch `[D]`: its score, or its log-probabilities' sum."""
    if isinstance(output, Scores):
        return output.scores[: len(batch.rows)]  # engines may fill a batch up at its end
    assert isinstance(output, Output)
    return document_sums(output.logprobs, batch)


def select_targets(output: Output | Scores | Values, batch: TokenBatch) -> Tensor:
    """Select, for each learned target of a batch in order, its log-probability or its value."""
    assert not isinstance(output, Scores)
    values = output.logprobs if isinstance(output, Output) else output.values
    return values[to_device(batch.learned)]


def gather_documents(
    found: Sequence[tuple[TokenBatch, Tensor]], num_documents: int
) -> NDArray[np.float64]:
    """Gather the numbers of all ranks' documents, by their numbers in the prepared data.

    Args:
        found: Batches and the numbers of their documents `[D]`; none where another rank has the
            same ones.
        num_documents: Documents of the data.

    Returns:
        The same on every rank; NaN for documents in no rank's batches.
    """
    placed = []
    for batch, values in found:
        rows = np.array(batch.rows)
        is_real = np.flatnonzero(rows >= 0)
        placed.append((rows[is_real], values.double()[to_device(is_real)]))
    return _put_together(placed, num_documents)


def gather_targets(
    found: Sequence[tuple[TokenBatch, Tensor]], segments: Segments
) -> NDArray[np.float64]:
    """Gather the numbers of all ranks' learned targets, laid end to end by sample.

    Args:
        found: Batches and the numbers of their learned targets, in order; none where another rank
            has the same ones.
        segments: Of all samples.

    Returns:
        `[N]`, the same on every rank; NaN for samples in no rank's batches.
    """
    placed = [
        (select(batch, torch.from_numpy(batch.targets), segments).indices.numpy(), values.double())
        for batch, values in found
    ]
    return _put_together(placed, int(segments.offsets[-1]))


def _put_together(
    placed: Sequence[tuple[NDArray[np.int64], Tensor]], size: int
) -> NDArray[np.float64]:
    """Put numbers at their places `[size]`, over all ranks, each of which has different places.

    They are put together where they are: the host waits once, for all of them.
    """
    both = torch.zeros(2, size, dtype=torch.float64, device=DEVICE)
    if placed:
        places = to_device(np.concatenate([where for where, _ in placed]))
        both[0].index_copy_(0, places, torch.cat([values for _, values in placed]))
        both[1].index_fill_(0, places, 1)
    dist.all_reduce(both)
    sums, count = both.cpu().numpy()
    return np.where(count > 0, sums, np.nan)
