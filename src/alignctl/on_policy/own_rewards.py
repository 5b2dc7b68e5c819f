"""Rewards of one's own in an episode: each rank's share of the answers, then all scores on all."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from alignctl.config.rewards import RewardFunction
from alignctl.data.prompt_store import PromptData
from alignctl.data.tokenizer import Tokenizer
from alignctl.errors import AlignctlError, RunError
from alignctl.on_policy.samples import Samples
from alignctl.rewards.functions import Functions
from alignctl.rewards.results import Answer, Result

_WARNINGS = 3
"""Times that failures of a reward are told; after that they are only counted."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Part:
    """One of the rewards whose sum an answer's score is, the same on every rank.

    Attributes:
        label: What it is called.
        weight: What it is multiplied by.
        values: What it said of each answer `[S]`; NaN where it failed.
        counted: What that counts, before the weight `[S]`.
        failures: Why it failed, None where it did not `[S]`.
        metrics: Other numbers that it told, NaN where it told none `[S]`.
        retries: Requests of a server that were repeated; None of what is no server.
    """

    label: str
    weight: float
    values: Numbers
    counted: Numbers
    failures: Sequence[str | None]
    metrics: Mapping[str, Numbers] = field(default_factory=dict)
    retries: int | None = None

    @property
    def weighted(self) -> Numbers:
        """What it adds to the score of each answer `[S]`."""
        return self.weight * self.counted

    def select(self, samples: Sequence[int]) -> Self:
        """Select these answers alone, in this order."""
        return type(self)(
            self.label,
            self.weight,
            self.values[samples],
            self.counted[samples],
            [self.failures[sample] for sample in samples],
            {name: values[samples] for name, values in self.metrics.items()},
            self.retries,
        )

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Join one reward of several groups of answers, end to end."""
        names = dict.fromkeys(name for part in parts for name in part.metrics)
        first = parts[0]
        return cls(
            first.label,
            first.weight,
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.counted for part in parts]),
            [each for part in parts for each in part.failures],
            {
                name: np.concatenate(
                    [part.metrics.get(name, np.full(len(part.values), np.nan)) for part in parts]
                )
                for name in names
            },
            None if first.retries is None else sum(part.retries or 0 for part in parts),
        )

    def told(self, total: Numbers) -> dict[str, float]:
        """Compute what a reader is told.

        Args:
            total: The sum of all rewards of each answer `[S]`.

        Returns:
            Mean and deviation of what it said; how often it failed; the share of the variance of
            the sum that comes from it, where there is any: shares of all rewards add up to 1.
        """
        name, known = f"reward_{self.label}", self.values[~np.isnan(self.values)]
        found = {f"{name}_failed": float(len(self.values) - len(known))}
        if len(known):
            found = {name: float(known.mean()), f"{name}_std": float(known.std())} | found
        if self.retries is not None:
            found[f"{name}_retried"] = float(self.retries)
        variance = float(total.var())
        if variance > 0:
            products = (self.weighted - self.weighted.mean()) * (total - total.mean())
            found[f"{name}_share"] = float(products.mean()) / variance
        for metric, values in self.metrics.items():
            if not np.isnan(values).all():
                found[f"{name}_{metric}"] = float(np.nanmean(values))
        return found


@dataclass(eq=False)
class OwnRewards:
    """Scores answers by rewards of one's own.

    Attributes:
        functions: The rewards, at work.
        tokenizer: Of the policy.
        data: The prompts, with their rows.
        warnings: What is to be told of failures, until it is told.
    """

    functions: Functions
    tokenizer: Tokenizer
    data: PromptData
    warnings: list[str] = field(default_factory=list)
    _times: dict[str, int] = field(default_factory=dict)
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "rewards"))

    def start(self, samples: Samples) -> Callable[[], list[Part]]:
        """Start to score this rank's share of answers; what is returned waits for all scores.

        Every rank has to call that. It raises RunError when a reward has scored not one answer.
        """
        places = np.array_split(np.arange(len(samples)), dist.get_world_size())[dist.get_rank()]
        future = self._thread.submit(self.functions.results, self._answers(samples, places))

        def wait() -> list[Part]:
            # Scores that a process died of would leave the other ranks waiting: all share it.
            mine: tuple[list[list[Result]] | None, str] = None, ""
            try:
                mine = future.result(), ""
            except AlignctlError as error:
                mine = None, error.message
            everybody: list[tuple[list[list[Result]] | None, str]] = [mine] * dist.get_world_size()
            dist.all_gather_object(everybody, mine)
            if broken := next((why for results, why in everybody if results is None), None):
                raise RunError(broken)
            shares = [results for results, _ in everybody if results is not None]
            return [
                self._part(function, [each for share in shares for each in share[place]], samples)
                for place, function in enumerate(self.functions.functions)
            ]

        return wait

    def _answers(self, samples: Samples, places: NDArray[np.int64]) -> list[Answer]:
        assert self.data.rows is not None
        rows = self.data.rows.read(int(samples.prompts[place]) for place in places)
        return [
            Answer(asked, self.tokenizer.decode_answer(samples.said(int(place))), row)
            for place, (asked, row) in zip(places, rows, strict=True)
        ]

    def _part(self, function: RewardFunction, results: Sequence[Result], samples: Samples) -> Part:
        """Make one reward's part of the scores, and a warning where it failed."""
        values = np.asarray([np.nan if r.score is None else r.score for r in results], np.float64)
        failures = [each.failure for each in results]
        failed = [place for place, why in enumerate(failures) if why is not None]
        if failed:
            first = f"{self.data.where(int(samples.prompts[failed[0]]))}: {failures[failed[0]]}"
            self._warn(function, len(failed), len(results), first)
        names = dict.fromkeys(name for each in results for name in each.metrics)
        return Part(
            function.called,
            function.weight,
            values,
            fill_failed(values, samples.groups, function.failed),
            failures,
            {name: np.asarray([r.metrics.get(name, np.nan) for r in results]) for name in names},
            None if function.url is None else sum(each.retries for each in results),
        )

    def _warn(self, function: RewardFunction, failed: int, total: int, first: str) -> None:
        """Note failures for the reader; refuse to go on where there is nothing else.

        Raises:
            RunError: All answers failed.
        """
        label = function.called
        if failed == total:
            raise RunError(
                f"reward {label} ({function.place}) gave none of {total} answers a score; the "
                f"first is an answer to {first}",
                f"try it: alignctl rewards test {function.url or function.file} --data FILE",
            )
        times = self._times[label] = self._times.get(label, 0) + 1
        if times <= _WARNINGS:
            more = "; from now on such are only counted" if times == _WARNINGS else ""
            self.warnings.append(
                f"warning: reward {label} gave {failed} of {total} answers no score; the first is "
                f"an answer to {first} (samples/ has all{more})"
            )

    def take_warnings(self) -> list[str]:
        """Return the warnings that were not told yet, and forget them."""
        taken, self.warnings = self.warnings, []
        return taken


def fill_failed(values: Numbers, groups: NDArray[np.int64], failed: float | None) -> Numbers:
    """Give answers whose reward failed what they count.

    Args:
        values: What the reward said `[S]`; NaN where it failed; at least one is known.
        groups: Answers to one prompt have one number `[S]`.
        failed: The score of a failure; None: the mean of the others to its prompt, so that no
            advantage comes of it; of all, where there is none.

    Returns:
        `[S]`.
    """
    is_unknown = np.isnan(values)
    if not is_unknown.any():
        return values
    if failed is not None:
        return np.where(is_unknown, failed, values)
    filled = values.copy()
    for place in np.flatnonzero(is_unknown):
        others = values[(groups == groups[place]) & ~is_unknown]
        filled[place] = others.mean() if len(others) else np.nanmean(values)
    return filled
