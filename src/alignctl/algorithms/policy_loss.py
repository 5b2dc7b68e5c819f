"""The losses that improve a policy from its own samples: PPO, GRPO and their relatives."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from alignctl.algorithms.kl import clamped, k1, k3, kl_loss
from alignctl.algorithms.loss import LossTerms, Output
from alignctl.algorithms.samples import Segments, select
from alignctl.data.batch import TokenBatch

Variant = Literal["ppo", "gspo", "cispo"]
Aggregation = Literal["token", "sequence", "constant"]


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
    the trainer's own, so that r is exactly 1 before the first update.

    Arrays are of the samples of the whole step, on the CPU, and have no gradient. The loss is a
    mean, which the engine takes over the whole optimizer step:

    - `token`: over all tokens, so that long responses weigh more (DAPO).
    - `sequence`: over sequences, of the means over their tokens (GRPO).
    - `constant`: over sequences, of the sums over their tokens divided by `max_tokens` (Dr. GRPO).

    Masked tokens count nowhere: not as tokens, nor is a sequence counted of which none is left.

    Attributes:
        segments: Whose tokens these are.
        old_logprobs: Of the policy at the start of the step `[N]`.
        advantages: `[N]`.
        reference: Log-probabilities of the reference `[N]`, for the penalty and for reports.
        weights: Importance weights of the policy term `[N]` (`mismatch`), which correct for a
            sampler that is not quite the old policy.
        mask: True at the tokens that count `[N]`.
        variant: Which loss.
        clip_low: How far below 1 a ratio still has a gradient; 1 for no bound.
        clip_high: How far above 1.
        dual_clip: c, above 1; None for no such bound. Only of `ppo`.
        aggregation: Which mean.
        max_tokens: The constant that sums are divided by. Only of `constant`.
        kl_coef: Weight of the penalty; it needs the reference.
        entropy_coef: Weight of the bonus.
        has_entropy: Whether the engine computes entropies: the bonus needs them, reports may.
    """

    segments: Segments
    old_logprobs: Tensor
    advantages: Tensor
    reference: Tensor | None = None
    weights: Tensor | None = None
    mask: Tensor | None = None
    variant: Variant = "ppo"
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    aggregation: Aggregation = "token"
    max_tokens: int | None = None
    kl_coef: float = 0.0
    entropy_coef: float = 0.0
    has_entropy: bool = False

    def __post_init__(self) -> None:
        """A setting that has no effect is refused where configurations are read."""
        assert self.dual_clip is None or (self.dual_clip > 1 and self.variant == "ppo")
        assert (self.max_tokens is not None) == (self.aggregation == "constant")
        assert not self.kl_coef or self.reference is not None
        assert not self.entropy_coef or self.has_entropy

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Those of a call; some of them only with a dual clip, a reference, or entropies."""
        return (
            "policy_loss",
            "ratio",
            "approx_kl",
            "approx_kl_k1",
            "clip_fraction_low",
            "clip_fraction_high",
            *(("dual_clip_fraction",) if self.dual_clip is not None else ()),
            *(("kl", "kl_k1") if self.reference is not None else ()),
            *(("entropy",) if self.has_entropy else ()),
        )

    def __call__(self, output: Output, targets: Tensor, batch: TokenBatch) -> LossTerms:
        """Terms of one micro batch; the weight is its tokens, or its sequences.

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
            """Of all tokens those of the micro batch, beside its log-probabilities."""
            return values[selection.indices].to(logprobs)

        old, advantages = part(self.old_logprobs), part(self.advantages)
        mask = torch.ones_like(logprobs) if self.mask is None else part(self.mask)
        shares, means, weight = self._shares(mask, selection.segments)

        ratio = self._ratio(logprobs, old, mask, selection.segments)
        losses, metrics = self._policy(ratio, logprobs, advantages)
        if self.weights is not None:
            losses = losses * part(self.weights)
        known = logprobs.detach()
        metrics |= {
            "ratio": ratio.detach(),
            "approx_kl": k3(old, known),
            "approx_kl_k1": k1(old, known),
        }
        sums = {"policy_loss": (shares * losses.detach()).sum()}
        if self.reference is not None:
            reference = part(self.reference)
            metrics |= {"kl": k3(known, reference), "kl_k1": k1(known, reference)}
            if self.kl_coef:
                losses = losses + self.kl_coef * kl_loss(logprobs, reference)
        if self.has_entropy:
            assert output.entropy is not None
            entropy = output.entropy[selection.positions]
            metrics["entropy"] = entropy.detach()
            if self.entropy_coef:
                assert entropy.requires_grad == logprobs.requires_grad
                losses = losses - self.entropy_coef * entropy
        sums |= {name: (means * values).sum() for name, values in metrics.items()}
        return LossTerms((shares * losses).sum(), weight, {n: sums[n] for n in self.metric_names})

    def _shares(self, mask: Tensor, segments: Segments) -> tuple[Tensor, Tensor, Tensor]:
        """What each token `[M]` adds to the loss and to other means, and the weight of all."""
        if self.aggregation == "token":
            return mask, mask, mask.sum()
        counts = segments.sums(mask)
        weight = (counts > 0).sum().to(mask)
        means = mask / segments.spread(counts.clamp(min=1))
        if self.max_tokens is None:
            return means, means, weight
        return mask / self.max_tokens, means, weight

    def _ratio(self, logprobs: Tensor, old: Tensor, mask: Tensor, segments: Segments) -> Tensor:
        """The ratios `[M]`, of tokens or of their sequences."""
        log_ratio = logprobs - old
        if self.variant == "gspo":
            counts = segments.sums(mask).clamp(min=1)
            mean = segments.sums(log_ratio.detach() * mask) / counts
            # The value of the sequence, the gradient of the token.
            log_ratio = segments.spread(mean) + (logprobs - logprobs.detach())
        return clamped(log_ratio).exp()

    def _policy(
        self, ratio: Tensor, logprobs: Tensor, advantages: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses of tokens `[M]`, and which of them were clipped `[M]`."""
        low, high = 1 - self.clip_low, 1 + self.clip_high
        bounded = ratio.clamp(low, high)
        if self.variant == "cispo":
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
        if self.dual_clip is not None:
            most = -self.dual_clip * advantages
            is_above = (advantages < 0) & (losses > most)
            losses = torch.where(is_above, most, losses)
            clipped["dual_clip_fraction"] = is_above.to(ratio)
        return losses, clipped
