"""What happens to the scores of whole samples before they become rewards."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from alignctl.config.on_policy import MissingEOS


@dataclass(frozen=True)
class RunningStd:
    """The deviation of all scores seen so far, merged step by step (Chan et al. 1979).

    Its fields are its state, as JSON has them.

    Attributes:
        count: Scores seen.
        mean: Their mean.
        squares: Sum of the squares of their differences from the mean.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def merge(self, scores: Tensor) -> Self:
        """Add the scores of another step `[S]`: those of all ranks, as the model gave them."""
        exact = scores.double()
        count, mean = len(exact), exact.mean().item()
        total, distance = self.count + count, mean - self.mean
        squares = exact.var(correction=0).item() * count
        return type(self)(
            total,
            self.mean + distance * count / total,
            self.squares + squares + distance**2 * self.count * count / total,
        )

    @property
    def std(self) -> float:
        """Of the population; 1 as long as scores differ by rounding only, so that it can divide."""
        if not self.count:
            return 1.0
        variance = self.squares / self.count
        return math.sqrt(variance) if variance > 1e-12 * self.mean**2 else 1.0


def shape_scores(
    scores: Tensor,
    has_eos: Tensor,
    *,
    missing_eos: MissingEOS,
    missing_eos_score: float | None = None,
    clip: float = math.inf,
    scale: float = 1.0,
) -> Tensor:
    """Divide scores by the scale, clip them, then treat those of answers that did not end.

    A reward model scores a cut answer at a token where it has not learned to, so its score means
    little: `replace` puts another in its place, `add` adds a fixed one, a penalty, to it, `keep`
    leaves it. This comes last, so the fixed score is in the units of the result.

    Args:
        scores: As a model or a rule gave them `[S]`.
        has_eos: Whether the answer ended by itself, before the limit `[S]`, bool.
        missing_eos: What becomes of the others.
        missing_eos_score: What they get, or have added to theirs. None: with `replace`, 1 less than
            the lowest score of those that ended (of all, if none did), which suits models whose
            scores are not centred; with `add`, -1.
        clip: The largest magnitude of a scaled score.
        scale: What scores are divided by: 1, or `RunningStd.std` with these scores merged.

    Returns:
        `[S]`.
    """
    shaped = (scores / scale).clamp(-clip, clip)
    if missing_eos == "keep":
        return shaped
    fixed = -1.0 if missing_eos_score is None else missing_eos_score
    if missing_eos == "add":
        return torch.where(has_eos, shaped, shaped + fixed)
    if missing_eos_score is None:
        fixed += (shaped[has_eos] if has_eos.any() else shaped).min().item()
    return torch.where(has_eos, shaped, torch.full_like(shaped, fixed))


def overlong_penalty(lengths: Tensor, *, max_new_tokens: int, buffer: int) -> Tensor:
    """Compute 0 up to `buffer` tokens before the limit, from there falling to -1 at the limit.

    DAPO's soft overlong punishment (Yu et al. 2025, arXiv 2503.14476), to be added to scores.

    Args:
        lengths: Response tokens `[S]`.
        max_new_tokens: The limit.
        buffer: Tokens over which it falls, from 1 to the limit.

    Returns:
        `[S]`, fp32.
    """
    assert 0 < buffer <= max_new_tokens
    return ((max_new_tokens - buffer - lengths) / buffer).clamp(-1, 0)
