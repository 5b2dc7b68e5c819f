"""Whether an episode's answers can be trusted to be the policy's own, and what is done about it."""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignctl.algorithms import mismatch
from alignctl.algorithms.samples import Segments
from alignctl.config.on_policy import Trust
from alignctl.errors import RunError
from alignctl.on_policy.samples import Samples


@dataclass(frozen=True, eq=False)
class Correction:
    """What makes up for the difference between trainer and sampler.

    Attributes:
        weights: Of each token `[N]`, or None.
        mask: Tokens that count `[N]`, or None for all.
        metrics: What a reader is told.
    """

    weights: Tensor | None
    mask: Tensor | None
    metrics: dict[str, float]


def check(logprobs: NDArray[np.float64], samples: Samples, settings: Trust) -> Correction:
    """Compares the trainer's log-probabilities `[N]` with the sampler's.

    Raises:
        RunError: They are too far apart, or not finite.
    """
    trainer, sampler = torch.from_numpy(logprobs), torch.from_numpy(samples.logprobs)
    found = mismatch.measure(trainer, sampler)
    if not found.mean_difference <= settings.max_difference:  # also when it is not a number
        raise RunError(
            f"the sampler's log-probabilities differ from the trainer's by "
            f"{found.mean_difference:.3g} per token on average (at most {found.max_difference:.3g})"
            f", and trust.max_difference is {settings.max_difference}: its answers are not the "
            "policy's",
            "see whether both have the same precision and tokenizer; rollout.top_p and top_k make "
            "them differ; raise trust.max_difference if that is meant",
        )
    weights, mask = correction(trainer, sampler, samples.segments, settings)
    metrics = {f"mismatch_{name}": value for name, value in asdict(found).items()}
    if mask is not None:
        metrics["mismatch_masked"] = 1 - mask.double().mean().item()
    return Correction(weights, mask, metrics)


def correction(
    trainer: Tensor, sampler: Tensor, segments: Segments, settings: Trust
) -> tuple[Tensor | None, Tensor | None]:
    """Weights and mask `[N]` of whole answers; None where the settings want none."""
    match settings.correction:
        case "truncate":
            weights = mismatch.truncated_importance_weights(trainer, sampler, settings.cap)
            return weights, None
        case "mask_tokens":
            return None, mismatch.token_mask(trainer, sampler, settings.low, settings.high)
        case "mask_samples":
            low, high = settings.low, settings.high
            return None, mismatch.sequence_mask(trainer, sampler, segments, low, high)
        case "none":
            return None, None
