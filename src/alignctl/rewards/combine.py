"""How the rewards of a rule and of a model make one, and the penalty for repetition."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alignctl.config.on_policy import ScoreSource


def combine(
    source: ScoreSource,
    *,
    rule: NDArray[np.float64],
    model: NDArray[np.float64],
    rule_weight: float = 1.0,
    model_weight: float = 1.0,
) -> NDArray[np.float64]:
    """Combine the scores of each answer to its reward `[B]`.

    Args:
        source: merge: the weighted sum; sparse_only: the rule's alone; dense_only: the model's;
            functions: neither, so nothing.
        rule: Scores of the rule `[B]`, 0 or 1.
        model: Scores of the reward model `[B]`.
        rule_weight: What the rule's scores are multiplied by.
        model_weight: What the model's scores are multiplied by.
    """
    if source == "functions":
        return np.zeros_like(rule)
    if source == "sparse_only":
        return rule_weight * rule
    if source == "dense_only":
        return model_weight * model
    return rule_weight * rule + model_weight * model


def repetition_penalty(tokens: Sequence[int]) -> float:
    """Compute ChatLearn's penalty for n-grams that come again soon, n of 2 and 3; zero or less.

    For each n, the most frequent n-gram of an answer costs, if it occurs more than once, the number
    of its occurrences divided by the mean number of tokens between two of them, at least 1. Of
    equally frequent ones that with the lowest token ids counts.

    Args:
        tokens: Token ids of the answer alone.
    """
    return -sum(_repetition(tokens, n) for n in (2, 3))


def _repetition(tokens: Sequence[int], n: int) -> float:
    ngrams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    counts = Counter(ngrams)
    if not counts:
        return 0.0
    most = max(counts.values())
    if most < 2:
        return 0.0
    worst = min(ngram for ngram, count in counts.items() if count == most)
    places = [place for place, ngram in enumerate(ngrams) if ngram == worst]
    mean_gap = (places[-1] - places[0]) / (most - 1)
    return most / max(mean_gap - n, 1.0)
