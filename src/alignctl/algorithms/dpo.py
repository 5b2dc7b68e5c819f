"""Direct preference optimisation: a policy that prefers better answers more than its reference."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from alignctl.algorithms.copies import to_device
from alignctl.algorithms.loss import LossTerms, Output
from alignctl.algorithms.pairs import agreement, document_sums, pair_tensors
from alignctl.config.sections import DPOVariant
from alignctl.data.batch import PreferenceBatch

_METRICS = (
    "accuracy",
    "margin",
    "chosen_reward",
    "rejected_reward",
    "chosen_logprob",
    "rejected_logprob",
)


@dataclass(frozen=True, eq=False)
class DPO:
    """The losses of direct preference optimisation.

    With l = log p_policy(answer | prompt) - log p_reference(answer | prompt), summed over the
    answer's tokens, EOS included, and b and w the better and the worse answer to a prompt:

    - `sigmoid`: -log sigmoid(beta (l_b - l_w)), Rafailov et al. 2023, equation 7.
    - `sigmoid_norm`: the same with l divided by the answer's tokens.
    - `ipo`: (l_b - l_w - 1 / (2 beta))^2, Azar et al. 2023, equation 17, with l divided by the
      answer's tokens, as its authors do (and TRL).

    The mean over the pairs of a prompt is its loss, so that prompts weigh the same however many
    answers they have. With policy and reference equal, a sigmoid loss is ln 2 and all margins are
    0.

    Attributes:
        reference: Summed log-probability under the reference of every document of the prepared
            data, by the numbers in `PreferenceBatch.rows`; natural log.
        variant: Which loss.
        beta: How strongly the policy is held to the reference.
        label_smoothing: Probability that a preference is the wrong way round (conservative DPO,
            Mitchell 2023): (1 - s) loss(b, w) + s loss(w, b). Not of `ipo`.
        nll: Weight of -log p_policy(b | prompt) / tokens of b, which keeps the better answer
            likely (RPO: Pang et al. 2024, equation 1).
    """

    reference: NDArray[np.floating]
    variant: DPOVariant
    beta: float
    label_smoothing: float
    nll: float

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics; the loss's terms are told where there are two."""
        return (*_METRICS, *(("preference_loss", "nll_loss") if self.nll else ()))

    def __post_init__(self) -> None:
        """Assert that every setting has an effect; users' mistakes were refused before."""
        assert self.variant != "ipo" or not self.label_smoothing

    def __call__(self, output: Output, targets: Tensor, batch: PreferenceBatch) -> LossTerms:
        """Compute the terms of one micro batch; the weight is its prompts.

        The metrics are means over prompts: rewards are beta l, `margin` is their difference,
        `accuracy` the share of pairs in which it is positive (half of those in which it is 0), and
        `chosen_logprob` and `rejected_logprob` are log p_policy of whole answers. With `nll`, the
        loss is the sum of `preference_loss` and `nll_loss`.
        """
        del targets
        logprobs = document_sums(output.logprobs, batch)
        better, worse, share = pair_tensors(batch, logprobs)
        device, dtype = logprobs.device, logprobs.dtype
        reference = to_device(self.reference[list(batch.rows)], device, dtype)
        ratios = logprobs - reference
        # A filler learns no token, and its gradient must not become 0 / 0.
        tokens = to_device(batch.targets_per_document, device, dtype).clamp(min=1)
        is_mean = self.variant != "sigmoid"
        losses = self._losses(ratios / tokens if is_mean else ratios, better, worse)
        terms = {}
        if self.nll:
            likely = -self.nll * (logprobs / tokens)[better]
            terms = {"preference_loss": losses.detach(), "nll_loss": likely.detach()}
            losses = losses + likely
        rewards, known = self.beta * ratios.detach(), logprobs.detach()
        margins = rewards[better] - rewards[worse]
        metrics = {
            "accuracy": agreement(margins),
            "margin": margins,
            "chosen_reward": rewards[better],
            "rejected_reward": rewards[worse],
            "chosen_logprob": known[better],
            "rejected_logprob": known[worse],
            **terms,
        }
        return LossTerms(
            total=(share * losses).sum(),
            weight=share.new_full((), batch.pairs.num_prompts),
            metrics={name: (share * values).sum() for name, values in metrics.items()},
        )

    def _losses(self, ratios: Tensor, better: Tensor, worse: Tensor) -> Tensor:
        """Compute the loss of each pair `[P]` from the log-ratios of all documents `[D]`."""
        difference = ratios[better] - ratios[worse]
        if self.variant == "ipo":
            return (difference - 1 / (2 * self.beta)) ** 2
        smoothing = self.label_smoothing
        right, wrong = logsigmoid(self.beta * difference), logsigmoid(-self.beta * difference)
        return -(1 - smoothing) * right - smoothing * wrong
