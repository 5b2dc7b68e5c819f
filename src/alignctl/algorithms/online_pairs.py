"""Preferences among a policy's own samples, from the scores they got."""

import numpy as np
from numpy.typing import NDArray

from alignctl.config.on_policy import PairChoice
from alignctl.data.batch import Pairs


def choose_pairs(
    scores: NDArray[np.float64],
    groups: NDArray[np.int64],
    choice: PairChoice,
    may_win: NDArray[np.bool_] | None = None,
) -> tuple[Pairs, int]:
    """Choose pairs of samples of one prompt of which one is scored higher; ties are no pairs.

    - `best_worst`: the best of those that may win, and the worst sample; the first of several.
    - `all`: every two that are not scored equally.

    Args:
        scores: Of all samples `[S]`, finite.
        groups: Number of each sample's prompt `[S]`, in any order.
        choice: Which pairs.
        may_win: Samples that can be the better one of a pair `[S]`; None: all of them. An answer
            that the limit cut is no example to follow, whatever it is scored.

    Returns:
        Pairs of sample numbers, by prompt: each prompt weighs one in all. And the prompts that
        have no pair, because all their samples are scored equally, or none may win.
    """
    may_win = np.ones(len(scores), np.bool_) if may_win is None else may_win
    assert np.isfinite(scores).all()
    better: list[int] = []
    worse: list[int] = []
    share: list[float] = []
    prompts = np.unique(groups)
    num_prompts = 0
    for prompt in prompts:
        samples = np.flatnonzero(groups == prompt)
        above, below = _pairs_of_one(scores[samples], may_win[samples], choice)
        if not len(above):
            continue
        num_prompts += 1
        better += samples[above].tolist()
        worse += samples[below].tolist()
        share += [1 / len(above)] * len(above)
    pairs = Pairs(
        np.asarray(better, np.int64),
        np.asarray(worse, np.int64),
        np.asarray(share, np.float64),
        num_prompts,
    )
    return pairs, len(prompts) - num_prompts


def _pairs_of_one(
    scores: NDArray[np.float64], may_win: NDArray[np.bool_], choice: PairChoice
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find better and worse samples of one prompt, by their places in its scores."""
    if choice == "all":
        better, worse = np.nonzero((scores[:, None] > scores[None, :]) & may_win[:, None])
        return better, worse
    best, worst = int(np.where(may_win, scores, -np.inf).argmax()), int(scores.argmin())
    num_pairs = int(may_win[best] and scores[best] > scores[worst])
    return np.full(num_pairs, best), np.full(num_pairs, worst)
