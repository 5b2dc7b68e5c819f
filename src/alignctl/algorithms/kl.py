"""How far a policy is from its reference: estimates from samples, and the penalty's coefficient.

With d = log p(token) - log q(token) for tokens sampled from the policy p, and q the reference,
these estimate KL(p || q) (Schulman 2020, "Approximating KL divergence"):

| | value | bias | gradient by theta, if it is used as a loss | its expectation |
|---|---|---|---|---|
| k1 | d | none | grad log p | 0: it teaches nothing |
| k2 | d^2 / 2 | small near p = q | d grad log p | grad KL(p, q): right |
| k3 | e^-d - 1 + d | none, never negative | (1 - e^-d) grad log p | grad KL(q, p): another one |

(Tang and Munos 2025, arXiv 2506.09477.) So a reward takes k1 by value, a report k1 and k3, and a
loss `kl_loss`. All are natural logarithms.
"""

import math
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from alignctl.algorithms.samples import Segments

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to plus and minus this before exp, which stays finite in any dtype."""


def clamp_log_ratios(log_ratios: Tensor) -> Tensor:
    """Make log-ratios of any shape fit for exp; beyond the limits there is no gradient."""
    return log_ratios.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Compute d: unbiased, of either sign; of any shape, here and below."""
    return logprobs - reference


def k2(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Compute d^2 / 2: biased by value, right by gradient."""
    return (logprobs - reference) ** 2 / 2


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Compute e^-d - 1 + d: unbiased and never negative; d is clamped."""
    opposite = clamp_log_ratios(reference - logprobs)
    return opposite.expm1() - opposite  # exp(x) - 1 would lose all digits where p is almost q


def kl_loss(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Compute KL(p || q) as a loss: the value of k3 with the gradient of k2.

    In expectation over the policy's own samples the gradient is that of KL(p || q); over samples
    of an older policy it is so up to their ratio.
    """
    gradient = k2(logprobs, reference)
    return k3(logprobs, reference).detach() + (gradient - gradient.detach())


def sequence_kl(logprobs: Tensor, reference: Tensor, segments: Segments) -> float:
    """Compute KL(p || q) of whole responses: k1 `[N]`, summed by sample, mean over samples."""
    return segments.sums(k1(logprobs, reference).double()).mean().item()


@dataclass(frozen=True)
class FixedKL:
    """A coefficient that stays; its fields are its state, as JSON has them.

    Attributes:
        coef: What a nat of KL costs.
    """

    coef: float

    def next(self, kl: float, num_samples: int) -> Self:
        """Return the controller after a step."""
        del kl, num_samples
        return self


@dataclass(frozen=True)
class AdaptiveKL:
    """A coefficient that leads the KL to a target (Ziegler et al. 2019, section 2.2).

    Its fields are its state, as JSON has them.

    Attributes:
        coef: What a nat of KL costs now.
        target: KL of a whole response to the reference that is aimed at, nats.
        horizon: Samples over which a KL that is 20 % or more away changes the coefficient by
            about 20 %.
    """

    coef: float
    target: float
    horizon: float

    def __post_init__(self) -> None:
        """Assert bounds that are checked where configurations are read."""
        assert self.target > 0
        assert self.horizon > 0

    def next(self, kl: float, num_samples: int) -> Self:
        """Return the controller after a step.

        Args:
            kl: `sequence_kl` of the step's samples against the reference; not the KL between new
                and old policy.
            num_samples: Samples of the step, over all ranks.
        """
        assert math.isfinite(kl)
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        coef = self.coef * (1 + error * num_samples / self.horizon)
        return type(self)(coef, self.target, self.horizon)
