"""What an engine reports of one step."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class StepMetrics:
    """The result of one optimizer step or of one validation, equal on every rank.

    Attributes:
        loss: Total divided by the global weight.
        weight: The global weight: learned tokens over all ranks and micro batches.
        num_tokens: Input tokens of all documents over all data-parallel ranks, fillers included.
        num_computed_tokens: Those that were computed: less where documents share some.
        metrics: The loss's own sums, divided by the weight.
        grad_norm: Norm of the whole gradient before clipping; None in a validation, and where the
            step was left out because float16 could not hold the gradient.
        is_stop_requested: Whether any rank was asked to stop.
        target_outputs: What the forward pass found for each learned target `[N]`, if asked.
    """

    loss: float
    weight: float
    num_tokens: float
    num_computed_tokens: float
    metrics: dict[str, float]
    grad_norm: float | None
    is_stop_requested: bool
    target_outputs: NDArray[np.float64] | None = None
