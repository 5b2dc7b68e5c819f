"""Trust in samples: the same tokens' log-probabilities, by the trainer and by the sampler.

The two run other kernels, perhaps in another precision, so that samples are not quite the
trainer's policy's own. Here it is measured how far they are from that, and corrected: by weights,
or by masks. d is log p_trainer - log p_sampler, and e^d a token's importance ratio.
"""

from dataclasses import dataclass

from torch import Tensor

from alignctl.algorithms.kl import clamp_log_ratios, k1, k3
from alignctl.algorithms.samples import Segments
from alignctl.config.on_policy import Trust


@dataclass(frozen=True)
class Mismatch:
    """Over the tokens of a step.

    Attributes:
        mean_difference: Mean of |d|, nats; not finite if any log-probability is not.
        max_difference: Largest |d|.
        mean_ratio: Mean of e^d; 1 in expectation, whatever the two policies.
        kl: KL(sampler || trainer) per token by k3, which is never negative.
        kl_k1: The same by k1; far below 0 if tokens were not sampled from the probabilities that
            the sampler tells (another temperature, top-p without renormalisation).
        effective_share: Effective sample size by token, of all tokens: (sum w)^2 / (N sum w^2)
            with w = e^d (Kish 1965).
    """

    mean_difference: float
    max_difference: float
    mean_ratio: float
    kl: float
    kl_k1: float
    effective_share: float


def measure(trainer: Tensor, sampler: Tensor) -> Mismatch:
    """Compare the log-probabilities of the tokens of a step, both `[N]`."""
    trainer, sampler = trainer.double(), sampler.double()
    distance = (trainer - sampler).abs()
    ratio = clamp_log_ratios(trainer - sampler).exp()
    return Mismatch(
        mean_difference=distance.mean().item(),
        max_difference=distance.max().item(),
        mean_ratio=ratio.mean().item(),
        kl=k3(sampler, trainer).mean().item(),
        kl_k1=k1(sampler, trainer).mean().item(),
        effective_share=(ratio.mean() ** 2 / (ratio**2).mean()).item(),
    )


def correct(
    trainer: Tensor, sampler: Tensor, segments: Segments, settings: Trust
) -> tuple[Tensor | None, Tensor | None]:
    """Compute what makes up for the difference between trainer and sampler.

    Args:
        trainer: Log-probabilities `[N]`.
        sampler: The same by the sampler `[N]`.
        segments: Whose tokens these are, of whole responses.
        settings: How it is made up for.

    Returns:
        Weights of the tokens `[N]` and which of them count `[N]`; None where the settings want
        none.
    """
    match settings.correction:
        case "truncate":
            return truncate_importance_weights(trainer, sampler, settings.cap), None
        case "mask_tokens":
            return None, token_mask(trainer, sampler, settings.low, settings.high)
        case "mask_samples":
            return None, sequence_mask(trainer, sampler, segments, settings.low, settings.high)
        case "none":
            return None, None


def truncate_importance_weights(trainer: Tensor, sampler: Tensor, cap: float = 2.0) -> Tensor:
    """Compute min(e^d, cap) `[N]`: bounded weights for the policy's loss (Ionides 2008)."""
    return clamp_log_ratios(trainer - sampler).exp().clamp(max=cap)


def token_mask(trainer: Tensor, sampler: Tensor, low: float = 0.5, high: float = 5.0) -> Tensor:
    """Find the tokens `[N]` with a ratio from low to high: True stays (IcePop, Ling Team 2025)."""
    ratio = clamp_log_ratios(trainer - sampler).exp()
    return (ratio >= low) & (ratio <= high)


def sequence_mask(
    trainer: Tensor, sampler: Tensor, segments: Segments, low: float, high: float
) -> Tensor:
    """Find the tokens `[N]` of samples whose geometric mean of ratios is in bounds: True stays.

    The geometric mean does not drift with the length of a response, so bounds near 1, as 0.999 and
    1.002, fit all of them.
    """
    ratio = clamp_log_ratios(segments.means((trainer - sampler).double())).exp()
    return segments.spread((ratio >= low) & (ratio <= high))
