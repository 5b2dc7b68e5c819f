"""Checks that an episode's answers are the policy's own, as far as the settings want it."""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignctl.algorithms import mismatch
from alignctl.config.on_policy import Trust
from alignctl.errors import RunError
from alignctl.on_policy.samples import Samples


@dataclass(frozen=True, eq=False)
class Agreement:
    """How the trainer's log-probabilities compare with the sampler's.

    Attributes:
        mask: Tokens that the correction leaves in the loss `[N]`, or None for all.
        metrics: What a reader is told.
    """

    mask: Tensor | None
    metrics: dict[str, float]


def check(logprobs: NDArray[np.float64], samples: Samples, settings: Trust) -> Agreement:
    """Compare the trainer's log-probabilities `[N]` with the sampler's.

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
    _, mask = mismatch.correct(trainer, sampler, samples.segments, settings)
    metrics = {f"mismatch_{name}": value for name, value in asdict(found).items()}
    if mask is not None:
        metrics["mismatch_masked"] = 1 - mask.double().mean().item()
    return Agreement(mask, metrics)
