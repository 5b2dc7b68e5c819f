"""Reward modelling: scores that put better answers above worse ones."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor
from torch.nn.functional import logsigmoid

from alignctl.algorithms.copies import to_device
from alignctl.algorithms.loss import LossTerms, Scores
from alignctl.algorithms.pairs import agreement, pair_tensors
from alignctl.data.batch import PreferenceBatch

BUCKETS = (0.0, 0.5, 1.0, 2.0, math.inf)
"""Edges of the margins that accuracy is told by. A difference of m claims to be right with
probability sigmoid(m): 50, 62, 73 and 88 % at the edges."""

_BUCKET_NAMES = tuple(
    f"{low:g}_to_{high:g}" if high < math.inf else f"above_{low:g}"
    for low, high in pairwise(BUCKETS)
)
_MOMENTS = (
    "answers",
    "score",
    "score_squared",
    "tokens",
    "tokens_squared",
    "score_tokens",
)


@dataclass(frozen=True)
class BradleyTerry:
    """The negative log-likelihood of the preferences under the Bradley-Terry model.

    -log sigmoid(r_b - r_w - margin (s_b - s_w)) + centering (r_b + r_w)^2 for answers b and w of
    one prompt with s_b > s_w, r being the model's scores and s the data's. The mean over the pairs
    of a prompt is its loss, so that prompts weigh the same however many answers they have
    (Ouyang et al. 2022, equation 1). The margin is that of Touvron et al. 2023, equation 2.

    Attributes:
        margin: How far apart the model's scores have to be for each unit between the data's; 0
            takes only the order from the data.
        centering: Weight of the term that draws the scores of a pair towards a sum of 0
            (Eisenstein et al. 2023, equation 2).
    """

    margin: float = 0.0
    centering: float = 0.0

    metric_names = (
        "accuracy",
        "margin",
        *_MOMENTS,
        *(f"{kind}_{name}" for name in _BUCKET_NAMES for kind in ("pairs", "right")),
    )

    def __call__(self, output: Scores, targets: Tensor, batch: PreferenceBatch) -> LossTerms:
        """Compute the terms of one micro batch, for `report`; the weight is its prompts."""
        del targets
        better, worse, share = pair_tensors(batch, output.scores)
        chosen, rejected = output.scores[better], output.scores[worse]
        difference = chosen - rejected
        known = to_device(batch.scores, share.device, share.dtype)
        losses = -logsigmoid(difference - self.margin * (known[better] - known[worse]))
        losses = losses + self.centering * (chosen + rejected) ** 2
        margins = difference.detach().double()
        metrics = {
            "accuracy": (share * agreement(margins)).sum(),
            "margin": (share * margins).sum(),
            **_moments(output.scores.detach().double(), batch),
            **_counts_by_margin(margins, share),
        }
        return LossTerms(
            (share * losses).sum(), share.new_full((), batch.pairs.num_prompts), metrics
        )


def _moments(scores: Tensor, batch: PreferenceBatch) -> dict[str, Tensor]:
    """Sum over answers what `report` makes mean, deviation and correlation of."""
    answers = batch.groups[-1]
    score = scores[:answers]
    tokens = to_device(batch.targets_per_document[:answers], score.device, score.dtype)
    sums = (
        score.new_full((), answers),
        score.sum(),
        (score * score).sum(),
        tokens.sum(),
        (tokens * tokens).sum(),
        (score * tokens).sum(),
    )
    return dict(zip(_MOMENTS, sums, strict=True))


def _counts_by_margin(margins: Tensor, share: Tensor) -> dict[str, Tensor]:
    """Count pairs, and pairs in the right order, by how far apart their scores are."""
    counts = {}
    right = share * agreement(margins)
    for name, (low, high) in zip(_BUCKET_NAMES, pairwise(BUCKETS), strict=True):
        is_inside = (margins.abs() >= low) & (margins.abs() < high)
        counts[f"pairs_{name}"] = (share * is_inside).sum()
        counts[f"right_{name}"] = (right * is_inside).sum()
    return counts


def report(metrics: Mapping[str, float]) -> dict[str, float]:
    """Make the metrics that a user reads of those of `BradleyTerry`, summed over all ranks.

    Args:
        metrics: The sums, all divided by the same weight, as an engine returns them.

    Returns:
        `accuracy` (share of pairs in the right order) and `margin` (mean score difference), both
        means over prompts; `score_mean` and `score_std` over answers; `length_correlation`
        (Pearson's, of an answer's score and its tokens; 0 when one of them does not vary); and
        `accuracy_0_to_0.5` ...: the accuracy of the pairs whose scores are so far apart, left out
        when there is none.
    """
    found = {name: metrics[name] for name in ("accuracy", "margin")}
    count = metrics["answers"] or 1.0
    _, score, score_squared, tokens, tokens_squared, both = (
        metrics[name] / count for name in _MOMENTS
    )
    score_variance = _variance(score, score_squared)
    product = score_variance * _variance(tokens, tokens_squared)
    found["score_mean"] = score
    found["score_std"] = math.sqrt(score_variance)
    found["length_correlation"] = (both - score * tokens) / math.sqrt(product) if product else 0.0
    for name in _BUCKET_NAMES:
        if pairs := metrics[f"pairs_{name}"]:
            found[f"accuracy_{name}"] = metrics[f"right_{name}"] / pairs
    return found


def _variance(mean: float, mean_square: float) -> float:
    """Compute E[x^2] - E[x]^2; 0 where only rounding is left, which would correlate as noise."""
    variance = mean_square - mean * mean
    return variance if variance > 1e-12 * mean_square else 0.0
