"""Cross-entropy of the tokens that are learned: the loss of pretraining and of fine-tuning."""

from typing import Any

from torch import Tensor

from alignctl.algorithms.loss import LossTerms, Output
from alignctl.data.batch import IGNORE


class CrossEntropy:
    """-sum log p(target) over learned tokens; its weight is their number."""

    metric_names = ("token_accuracy",)

    def __call__(self, output: Output, targets: Tensor, batch: Any) -> LossTerms:
        """Compute the terms of one micro batch; `token_accuracy` counts targets ranked first."""
        learned = targets != IGNORE
        return LossTerms(
            total=-output.logprobs.sum(),
            weight=learned.sum().float(),
            metrics={"token_accuracy": output.is_most_likely.sum().float()},
        )
