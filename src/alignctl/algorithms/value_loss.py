"""The loss of a value model: what a response will be worth, from each prefix of it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from alignctl.algorithms.copies import to_device
from alignctl.algorithms.loss import LossTerms, Values
from alignctl.algorithms.samples import Segments, select
from alignctl.data.batch import TokenBatch


@dataclass(frozen=True, eq=False)
class ValueLoss:
    """Half the squared error of the values, which are held near those that advantages came from.

    With the return R and v' = v clipped to the old value plus and minus `clip`, a token's loss is
    max((v - R)^2, (v' - R)^2) / 2 (Schulman's implementation of PPO): no gradient for values that
    have moved `clip` towards their return already. The mean is over tokens.

    Arrays are of the samples of the whole step, on the CPU, and have no gradient.

    Attributes:
        segments: Whose tokens these are.
        old_values: At the start of the step `[N]`.
        returns: `[N]`.
        mask: True at the tokens that count `[N]`.
        clip: How far a value may move; None for any distance.
        is_clipped_only: (v' - R)^2 / 2 instead, ChatLearn's `clipped_value_only`: also a value
            that has moved `clip` in the wrong direction has no gradient, and stays there.
    """

    segments: Segments
    old_values: Tensor
    returns: Tensor
    mask: Tensor | None = None
    clip: float | None = 0.1
    is_clipped_only: bool = False

    metric_names = (
        "value",
        "return",
        "return_squared",
        "error",
        "error_squared",
        "clip_fraction",
    )

    def __post_init__(self) -> None:
        """Assert that every setting has an effect; users' mistakes were refused before."""
        assert self.clip is not None or not self.is_clipped_only

    def __call__(self, output: Values, targets: Tensor, batch: TokenBatch) -> LossTerms:
        """Compute the terms of one micro batch, for `report`; the weight is its tokens."""
        positions, indices, _ = select(batch, targets, self.segments)
        values = output.values[positions]

        def part(of_samples: Tensor) -> Tensor:
            """Select the numbers of the micro batch's tokens, where its values are."""
            return to_device(of_samples[indices], values.device, values.dtype)

        old, returns = part(self.old_values), part(self.returns)
        mask = torch.ones_like(values) if self.mask is None else part(self.mask)
        errors = (values - returns) ** 2
        losses, is_clipped = errors, torch.zeros_like(values)
        if self.clip is not None:
            bounded = (old + (values - old).clamp(-self.clip, self.clip) - returns) ** 2
            losses = bounded if self.is_clipped_only else torch.maximum(errors, bounded)
            is_outside = (values - old).abs() > self.clip
            is_clipped = (is_outside & (losses == bounded)).to(values)
        exact, error = returns.double(), (returns - values.detach()).double()
        sums = (values.detach(), exact, exact**2, error, error**2, is_clipped)
        metrics = zip(self.metric_names, [(mask * each).sum() for each in sums], strict=True)
        return LossTerms(0.5 * (mask * losses).sum(), mask.sum(), dict(metrics))


def report(metrics: Mapping[str, float]) -> dict[str, float]:
    """Make the metrics that a user reads of those of `ValueLoss` over all ranks.

    Args:
        metrics: Means over tokens, as an engine returns them.

    Returns:
        `value` and `return`, means; `clip_fraction`: tokens whose clipped error counted and had no
        gradient; and `explained_variance`: 1 - variance of return - value / variance of return,
        left out when returns do not vary: 1 is perfect, 0 no better than a constant.
    """
    found = {name: metrics[name] for name in ("value", "return", "clip_fraction")}
    square = metrics["return_squared"]
    variance = square - metrics["return"] ** 2
    if variance > 1e-12 * square:  # less is rounding
        unexplained = metrics["error_squared"] - metrics["error"] ** 2
        found["explained_variance"] = 1 - unexplained / variance
    return found
