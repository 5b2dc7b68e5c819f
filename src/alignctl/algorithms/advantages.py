"""How much better an answer was than expected: rewards per token, GAE, baselines by group.

Pure functions of the whole step's samples, so that every rank finds the same. Nothing here has a
gradient.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from alignctl.algorithms.kl import k1
from alignctl.algorithms.samples import Segments
from alignctl.config.on_policy import Baseline


def token_rewards(
    scores: Tensor,
    logprobs: Tensor,
    reference: Tensor,
    segments: Segments,
    *,
    kl_coef: float,
    lm_coef: float = 0.0,
    extra: Tensor | None = None,
) -> Tensor:
    """Compute rewards of tokens: -kl_coef k1 at each, and the score on top at the last one.

    The penalty is not divided by the response's length, so a nat costs the same in every response:
    a sample's rewards sum to its score - kl_coef (sum of its log-ratios) (Ouyang et al. 2022,
    equation 2).

    Args:
        scores: Of whole samples, shaped `[S]`.
        logprobs: Of the policy that sampled, as the trainer computes them `[N]`.
        reference: Of the reference `[N]`.
        segments: Whose tokens these are.
        kl_coef: What a nat of KL to the reference costs.
        lm_coef: Reward of each token per nat of the reference's log-probability.
        extra: Further terms of whole samples `[S]`, which no clipping touched: n-gram penalties.

    Returns:
        Rewards `[N]`.
    """
    rewards = lm_coef * reference - kl_coef * k1(logprobs, reference)
    rewards[segments.last] += scores if extra is None else scores + extra
    return rewards


def gae(
    rewards: Tensor,
    values: Tensor,
    segments: Segments,
    *,
    gamma: float,
    lam: float,
    bootstrapped: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Estimate generalised advantages over response tokens (Schulman et al. 2015, equation 16).

    Args:
        rewards: `[N]`.
        values: Expected from the prefix before each token `[N]`.
        segments: Whose tokens these are.
        gamma: Discount of a token's distance.
        lam: 1 trusts the rewards, 0 the values.
        bootstrapped: Samples that go on after their last token `[S]`, bool: those that the length
            limit cut, where such are not to count as ended there. What would follow is valued like
            the prefix before the last token: one token more has no value of its own. After the
            others, and after all if None, the value is 0.

    Returns:
        Advantages `[N]`, not whitened, and returns `[N]`: advantages + values.
    """
    following = values.roll(-1)
    end = torch.zeros_like(values[segments.last])
    following[segments.last] = (
        end if bootstrapped is None else torch.where(bootstrapped, values[segments.last], end)
    )
    advantages = sum_discounted(rewards + gamma * following - values, segments, gamma * lam)
    return advantages, advantages + values


def sum_discounted(values: Tensor, segments: Segments, discount: float) -> Tensor:
    """Sum at each token from it to its sample's end, discounted by distance `[N]`."""
    sums = values.clone()
    last, lengths = segments.last, segments.lengths
    # All samples at once, token by token from their ends.
    for distance in range(1, int(lengths.max())):
        places = last[lengths > distance] - distance
        sums[places] += discount * sums[places + 1]
    return sums


def whiten(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Shift and scale to mean 0 and variance 1: (x - mean) / sqrt(variance + 1e-8), population's.

    To be called once, with the tokens of the whole step.

    Args:
        values: `[N]`.
        mask: True at the tokens that count `[N]`; the others become 0.
    """
    exact = values.double()
    known = exact if mask is None else exact[mask]
    mean = known.mean()
    whitened = (exact - mean) * (((known - mean) ** 2).mean() + 1e-8).rsqrt()
    return (whitened if mask is None else whitened.where(mask, 0.0)).to(values)


class GroupAdvantages(NamedTuple):
    """Scores against those they are compared with.

    Attributes:
        advantages: `[S]`.
        is_constant: Whether all scores of the sample's comparison are equal `[S]`, bool: nothing
            is to be learned from these samples, and their advantages are exactly 0.
    """

    advantages: Tensor
    is_constant: Tensor


def group_advantages(scores: Tensor, groups: Tensor, baseline: Baseline) -> GroupAdvantages:
    """Compute the advantages of whole samples over the others of their group.

    - `group_std`: (score - mean) / (std + 1e-6), of the population (GRPO: Shao et al. 2024).
    - `group_mean`: score - mean (Dr. GRPO: Liu et al. 2025).
    - `rloo`: score - mean of the others (Ahmadian et al. 2024).
    - `reinforce++`: `group_std` with all samples as one group (Hu 2025). With penalties per token
      it is `whiten(discounted_sums(rewards, segments, gamma))` instead.

    Whether scores are equal is decided by comparing them, not by a small deviation: the deviation
    of seven times 0.1 is not 0, and dividing by it would blow rounding up. The single sample of a
    group has nothing to be compared with: its advantage is 0, never its raw score, which would
    push by how scores happen to be centred.

    Args:
        scores: `[S]`.
        groups: Number of each sample's prompt `[S]`, int64, in any order.
        baseline: What a score is compared with.
    """
    if baseline == "reinforce++":
        groups = torch.zeros_like(groups)
    _, group, sizes = groups.unique(return_inverse=True, return_counts=True)
    exact, counts = scores.double(), sizes.double()  # a quotient of integers would be in float32
    none = torch.zeros_like(counts)
    lowest = none.scatter_reduce(0, group, exact, "amin", include_self=False)
    highest = none.scatter_reduce(0, group, exact, "amax", include_self=False)
    centred = exact - (none.index_add(0, group, exact) / counts)[group]
    if baseline == "rloo":
        # score - mean of the others = (score - mean) n / (n - 1)
        centred = centred * (counts / (counts - 1).clamp(min=1))[group]
    elif baseline != "group_mean":
        variance = none.index_add(0, group, centred**2) / counts
        centred = centred / (variance.sqrt() + 1e-6)[group]
    is_constant = (lowest == highest)[group]
    return GroupAdvantages(torch.where(is_constant, 0.0, centred).to(scores), is_constant)
