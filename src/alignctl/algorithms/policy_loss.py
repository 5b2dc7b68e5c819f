"""The losses that improve a policy from its own samples: PPO, GRPO and their relatives."""

from dataclasses import dataclass

import torch
from torch import Tensor

from alignctl.algorithms.copies import to_device
from alignctl.algorithms.kl import clamp_log_ratios, k1, k3, kl_loss
from alignctl.algorithms.loss import LossTerms, Output
from alignctl.algorithms.mismatch import correct
from alignctl.algorithms.samples import Segments, Selection, select
from alignctl.config.on_policy import Clipping, Trust
from alignctl.data.batch import TokenBatch


@dataclass(frozen=True, eq=False)
class PolicyLoss:
    """Clipped policy gradients, with a KL penalty and an entropy bonus as options.

    With r = p_new(token) / p_old(token) and A the advantage, a token's loss is

    - `ppo`: -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) (Schulman et al. 2017, equation 7;
      unequal bounds: DAPO, Yu et al. 2025, arXiv 2503.14476). With a dual clip c, a loss with
      A < 0 is at most -c A (Ye et al. 2020, arXiv 1912.09729).
    - `gspo`: the same with the geometric mean of the response's r in place of r, whose gradient
      each token has by itself (GSPO-token: Zheng et al. 2025, arXiv 2507.18071, section 4.3).
    - `cispo`: -stop(clip(r)) A log p_new: no token loses its gradient (MiniMax 2025, arXiv
      2506.13585).

    + kl_coef KL(new || reference), by `kl_loss`, - entropy_coef entropy. Old log-probabilities are
    the trainer's own, so that r is exactly 1 before the first update. Where there is one update
    alone, they need not be given: they are those of its own forward pass, without their gradient.

    The sampler is not quite the old policy. What makes up for that, `mismatch.correct`, weighs a
    token's policy term, or leaves it out.

    Arrays are of the samples of the whole step, on the CPU, and have no gradient. The loss is a
    mean, which the engine takes over the whole optimizer step:

    - `token`: over all tokens, so that long responses weigh more (DAPO).
    - `sequence`: over sequences, of the means over their tokens (GRPO).
    - `constant`: over sequences, of the sums over their tokens divided by `max_tokens` (Dr. GRPO).

    Masked tokens count nowhere: not as tokens, nor is a sequence counted of which none is left.

    Attributes:
        settings: Which loss, its bounds, and which mean.
        segments: Whose tokens these are.
        advantages: `[N]`.
        old_logprobs: Of the policy at the start of the step `[N]`; None: the step's own.
        sampler_logprobs: Those that the sampler told `[N]`; None: there is nothing to make up for.
        trust: How the difference to them is made up for.
        reference: Log-probabilities of the reference `[N]`, for the penalty and for reports.
        kl_coef: Weight of the penalty; it needs the reference.
        max_tokens: The constant that sums are divided by, of `constant`.
        has_entropy: Whether the engine computes entropies: the bonus needs them, reports may.
    """

    settings: Clipping
    segments: Segments
    advantages: Tensor
    old_logprobs: Tensor | None = None
    sampler_logprobs: Tensor | None = None
    trust: Trust | None = None
    reference: Tensor | None = None
    kl_coef: float = 0.0
    max_tokens: int | None = None
    has_entropy: bool = False

    def __post_init__(self) -> None:
        """Assert what every configuration satisfies."""
        settings = self.settings
        assert settings.dual_clip is None or settings.variant == "ppo"
        assert settings.aggregation != "constant" or self.max_tokens is not None
        assert (self.sampler_logprobs is None) == (self.trust is None)
        assert not self.kl_coef or self.reference is not None
        assert not settings.entropy_coef or self.has_entropy

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of a call's metrics; some only with a dual clip, a reference, or entropies."""
        return (
            "policy_loss",
            "ratio",
            "approx_kl",
            "approx_kl_k1",
            "clip_fraction_low",
            "clip_fraction_high",
            *(("dual_clip_fraction",) if self.settings.dual_clip is not None else ()),
            *(("kl", "kl_k1") if self.reference is not None else ()),
            *(("entropy",) if self.has_entropy else ()),
        )

    def __call__(self, output: Output, targets: Tensor, batch: TokenBatch) -> LossTerms:
        """Compute the terms of one micro batch; the weight is its tokens, or its sequences.

        `policy_loss` is the loss without penalty and bonus. The other metrics are means over
        tokens, or over sequences of the means over their tokens, as the weight counts:

        - `ratio`: r, or the sequence's with `gspo`.
        - `approx_kl`, `approx_kl_k1`: KL(old || new), by k3 and by k1.
        - `clip_fraction_low`, `clip_fraction_high`: tokens whose ratio is beyond a bound and whose
          gradient that has stopped (`cispo`: has been bounded), `dual_clip_fraction` by c.
        - `kl`, `kl_k1`: KL(new || reference) per token, by k3 and by k1.
        - `entropy`: nats.
        """
        selection = select(batch, targets, self.segments)
        logprobs = output.logprobs[selection.positions]

        def part(values: Tensor) -> Tensor:
            """Select the values of the micro batch's tokens, on its log-probabilities' device."""
            return to_device(values[selection.indices], logprobs.device, logprobs.dtype)

        own = logprobs.detach()
        old = own if self.old_logprobs is None else part(self.old_logprobs)
        weights, mask = self._correct(own, selection)
        shares, means, weight = self._shares(mask, selection.segments)
        ratio = self._ratio(logprobs, old, mask, selection.segments)
        losses, metrics = self._policy(ratio, logprobs, part(self.advantages))
        losses = losses if weights is None else losses * weights
        metrics |= {
            "ratio": ratio.detach(),
            "approx_kl": k3(old, own),
            "approx_kl_k1": k1(old, own),
        }
        sums = {"policy_loss": (shares * losses.detach()).sum()}
        if self.reference is not None:
            reference = part(self.reference)
            metrics |= {"kl": k3(own, reference), "kl_k1": k1(own, reference)}
            if self.kl_coef:
                losses = losses + self.kl_coef * kl_loss(logprobs, reference)
        if self.has_entropy:
            assert output.entropy is not None
            entropy = output.entropy[selection.positions]
            metrics["entropy"] = entropy.detach()
            if self.settings.entropy_coef:
                assert entropy.requires_grad == logprobs.requires_grad
                losses = losses - self.settings.entropy_coef * entropy
        sums |= {name: (means * values).sum() for name, values in metrics.items()}
        return LossTerms((shares * losses).sum(), weight, {n: sums[n] for n in self.metric_names})

    def _correct(self, own: Tensor, selection: Selection) -> tuple[Tensor | None, Tensor]:
        """Compute weights of tokens `[M]`, if any, and 1 for those that count `[M]`; else 0."""
        if self.sampler_logprobs is None or self.trust is None:
            return None, torch.ones_like(own)

        def part(values: Tensor) -> Tensor:
            return to_device(values[selection.indices], own.device, torch.float64)

        old = own.double() if self.old_logprobs is None else part(self.old_logprobs)
        sampler = part(self.sampler_logprobs)
        weights, mask = correct(old, sampler, selection.segments, self.trust)
        return (
            None if weights is None else weights.to(own),
            torch.ones_like(own) if mask is None else mask.to(own),
        )

    def _shares(self, mask: Tensor, segments: Segments) -> tuple[Tensor, Tensor, Tensor]:
        """Compute each token's share `[M]` of the loss and of other means, and the total weight."""
        if self.settings.aggregation == "token":
            return mask, mask, mask.sum()
        counts = segments.sums(mask)
        weight = (counts > 0).sum().to(mask)
        means = mask / segments.spread(counts.clamp(min=1))
        if self.settings.aggregation == "sequence":
            return means, means, weight
        assert self.max_tokens is not None
        return mask / self.max_tokens, means, weight

    def _ratio(self, logprobs: Tensor, old: Tensor, mask: Tensor, segments: Segments) -> Tensor:
        """Compute the ratios `[M]`, of tokens or of their sequences."""
        log_ratio = logprobs - old
        if self.settings.variant == "gspo":
            counts = segments.sums(mask).clamp(min=1)
            mean = segments.sums(log_ratio.detach() * mask) / counts
            # The value of the sequence, the gradient of the token.
            log_ratio = segments.spread(mean) + (logprobs - logprobs.detach())
        return clamp_log_ratios(log_ratio).exp()

    def _policy(
        self, ratio: Tensor, logprobs: Tensor, advantages: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the losses of tokens `[M]`, and mark which of them were clipped `[M]`."""
        low, high = 1 - self.settings.clip_low, 1 + self.settings.clip_high
        bounded = ratio.clamp(low, high)
        if self.settings.variant == "cispo":
            losses = -bounded.detach() * advantages * logprobs
            return losses, {
                "clip_fraction_low": (ratio < low).to(ratio),
                "clip_fraction_high": (ratio > high).to(ratio),
            }
        losses = -torch.minimum(ratio * advantages, bounded * advantages)
        clipped = {
            "clip_fraction_low": ((ratio < low) & (advantages < 0)).to(ratio),
            "clip_fraction_high": ((ratio > high) & (advantages > 0)).to(ratio),
        }
        if self.settings.dual_clip is not None:
            most = -self.settings.dual_clip * advantages
            is_above = (advantages < 0) & (losses > most)
            losses = torch.where(is_above, most, losses)
            clipped["dual_clip_fraction"] = is_above.to(ratio)
        return losses, clipped
