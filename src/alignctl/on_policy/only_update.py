"""The only update of an episode: its forward pass finds the old log-probabilities as well.

Where an episode is learned from in one optimizer step, nothing has moved before it, so the
log-probabilities of that step's own forward pass, without their gradient, are the old ones. The
forward pass that would compute them beforehand is left out. What is compared with the sampler is
then known only afterwards, but before anything is saved.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from alignctl.algorithms.loss import LossTerms, Output
from alignctl.algorithms.policy_loss import PolicyLoss
from alignctl.algorithms.samples import select
from alignctl.config.on_policy import Trust
from alignctl.data.batch import TokenBatch
from alignctl.engines.megatron import MegatronEngine
from alignctl.engines.sums import by_target
from alignctl.on_policy.samples import Samples
from alignctl.on_policy.trust import Correction, correction


def unknown(samples: Samples, settings: Trust) -> tuple[Tensor, Correction]:
    """Old log-probabilities `[N]` and a correction whose numbers the update is to fill in."""
    blank = torch.zeros(len(samples.logprobs), dtype=torch.float64)
    weights, mask = correction(blank, blank, samples.segments, settings)
    return blank, Correction(weights, mask, {})


class OnlyUpdate:
    """A policy's loss that fills in the numbers of `unknown` as its micro batches come."""

    def __init__(self, loss: PolicyLoss, samples: Samples, settings: Trust) -> None:
        """Wraps a loss.

        Args:
            loss: Made with what `unknown` returned; its arrays are written to.
            samples: The answers of the episode.
            settings: How differences to the sampler are made up for.
        """
        self._loss, self._settings = loss, settings
        self._segments = samples.segments
        self._sampler = torch.from_numpy(samples.logprobs)
        self._found: list[tuple[TokenBatch, Tensor]] = []

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Those of the loss."""
        return self._loss.metric_names

    def __call__(self, output: Output, targets: Tensor, batch: TokenBatch) -> LossTerms:
        """Terms of one micro batch, in which every ratio is exactly 1."""
        positions, places, segments = select(batch, targets, self._segments)
        own = output.logprobs.detach()[positions].double().cpu()
        weights, mask = correction(own, self._sampler[places], segments, self._settings)
        for whole, part in (
            (self._loss.old_logprobs, own),
            (self._loss.weights, weights),
            (self._loss.mask, mask),
        ):
            if part is not None:
                assert whole is not None
                whole[places] = part
        self._found.append((batch, own))
        return self._loss(output, targets, batch)

    def logprobs(self, engine: MegatronEngine) -> Tensor:
        """The policy's log-probabilities `[N]` before the update, the same on every rank."""
        found: Sequence[tuple[TokenBatch, Tensor]] = self._found if engine.has_numbers else []
        return torch.from_numpy(by_target(found, self._segments))
