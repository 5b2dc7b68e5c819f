"""How far a measured share or mean can be trusted, and what several attempts are worth."""

import math
from collections.abc import Sequence

import numpy as np

_Z = 1.959963984540054
"""95 % of a normal distribution are within so many standard deviations."""

Interval = tuple[float, float]


def wilson(successes: int, total: int) -> Interval:
    """Compute the 95 % interval of a share by Wilson (1927), which holds near 0 and 1 as well.

    Args:
        successes: Of `total` independent attempts.
        total: At least 1.
    """
    share, z2 = successes / total, _Z * _Z
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def bootstrap(
    sums: Sequence[float],
    counts: Sequence[int] | None = None,
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> Interval:
    """Compute the 95 % interval of a mean: percentiles of the means of resampled units.

    Args:
        sums: The value of each independent unit, such as a problem; at least one. Of a unit with
            several values, which are drawn together, their sum.
        counts: Values of each unit; None: one.
        seed: Of the resampling.
        resamples: How many.
    """
    totals = np.asarray(sums, np.float64)
    numbers = np.ones(len(totals)) if counts is None else np.asarray(counts, np.float64)
    random = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        drawn = random.integers(len(totals), size=len(totals))
        means.append(totals[drawn].sum() / numbers[drawn].sum())
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def pass_at_k(attempts: int, successes: int, k: int) -> float:
    """Estimate without bias the probability that one of `k` attempts succeeds, from more.

    1 - C(n - c, k) / C(n, k): Chen et al. 2021, equation 1.

    Args:
        attempts: n, at least k.
        successes: c of them.
        k: Attempts that are counted together.
    """
    return 1.0 - math.comb(attempts - successes, k) / math.comb(attempts, k)
