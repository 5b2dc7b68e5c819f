"""One pass over micro batches: what its loss finds, and the sums of that over all ranks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from megatron.core.distributed import finalize_model_grads
from torch import Tensor

from alignctl.algorithms.loss import Loss, LossTerms, Output, Scores, Values
from alignctl.data.batch import TokenBatch
from alignctl.engines.metrics import StepMetrics
from alignctl.engines.sums import step_metrics


class Observer(Protocol):
    """Is told where Megatron's schedule is, and changes nothing."""

    def start_pass(self, batches: Sequence[TokenBatch], *, forward_only: bool) -> None:
        """Take note of the micro batches that the schedule is about to run."""

    def finish_batches(self) -> None:
        """Take note that all of them went backward; gradients are not yet reduced over ranks."""


@dataclass(eq=False)
class LossPass:
    """A loss over this rank's micro batches, which Megatron's schedule calls back.

    Attributes:
        loss: What is minimised.
        batches: This rank's micro batches.
        is_counted: Whether this rank's numbers count; other ranks have none, or the same ones.
        is_stop_requested: Whether this rank was asked to stop.
        terms: What the loss found so far, without gradients.
        result: The sums over all ranks, once they are known.
    """

    loss: Loss
    batches: Sequence[TokenBatch]
    is_counted: bool
    is_stop_requested: bool
    terms: list[LossTerms] = field(default_factory=list)
    result: StepMetrics | None = None

    def compute(
        self, output: Output | Scores | Values, targets: Tensor, batch: TokenBatch
    ) -> Tensor:
        """Compute the loss of one micro batch, a sum `[]`, and keep its terms."""
        found = self.loss(output, targets, batch)
        self.terms.append(
            LossTerms(
                found.total.detach(),
                found.weight.detach(),
                {name: value.detach() for name, value in found.metrics.items()},
            )
        )
        return found.total

    def sum_terms(self) -> StepMetrics:
        """Add up loss, weight and metrics over micro batches and ranks, once for the pass."""
        if self.result is None:
            self.result = step_metrics(
                self.terms if self.is_counted else [],
                self.loss.metric_names,
                self.batches if self.is_counted else [],
                is_stop_requested=self.is_stop_requested,
            )
        return self.result

    def finalize_gradients(self, model: list[Any], num_tokens: Tensor | None, **kw: Any) -> None:
        """Reduce gradients over ranks, then divide them once by the global weight."""
        finalize_model_grads(model, None, **kw)
        if weight := self.sum_terms().weight:
            for chunk in model:
                chunk.scale_gradients(1.0 / weight)
