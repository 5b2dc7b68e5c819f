"""What an episode gathers: prompts are answered, answers are scored, some are asked in addition."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from alignctl.data.order import step_sequences
from alignctl.data.prompt_store import PromptData
from alignctl.errors import RunError
from alignctl.on_policy.models import Models
from alignctl.on_policy.samples import Samples
from alignctl.on_policy.scoring import Scored, Scorer
from alignctl.reporting.phases import Phases
from alignctl.rollouts.samples import Request, Sampling, draw_seed


@dataclass(frozen=True, eq=False)
class Experience:
    """The answers of one episode, with their scores.

    Attributes:
        samples: The answers.
        scored: Their scores.
        metrics: What a reader is told about how they came about.
    """

    samples: Samples
    scored: Scored
    metrics: dict[str, float]

    @property
    def constant_groups(self) -> list[int]:
        """Groups of answers that are all worth the same.

        Before penalties of length and of repetitions: among answers that are all wrong, a penalty
        of 0.05 would make one the worst by far, as advantages are divided by their deviation.
        """
        groups, scores = self.samples.groups, self.scored.scores
        return [
            group
            for group in np.unique(groups).tolist()
            if len(np.unique(scores[groups == group])) == 1
        ]

    @property
    def without_penalties(self) -> Self:
        """Copy of the same answers whose rewards have no penalties added."""
        return replace(self, scored=replace(self.scored, extra=np.zeros_like(self.scored.extra)))


def gather(
    models: Models, scorer: Scorer, data: PromptData, step: int, phases: Phases
) -> Experience:
    """Answer the prompts of an episode, and more in the place of those that teach nothing.

    Which they are follows from the seed and the episode, so a resumed run asks the same.

    Args:
        models: The models; the sampler is awake.
        scorer: Scores answers.
        data: The prompts.
        step: Episodes done before this one.
        phases: Measures what sampling and scoring take.

    Raises:
        RunError: Not one request was answered.
    """
    config = models.config
    wanted, parts = config.experience.prompts, []
    asked = constant = retried = failed = 0
    first: Experience | None = None
    for refill in range(config.experience.max_refills + 1):
        places = step_sequences(
            len(data.train),
            global_batch_size=config.experience.prompts,
            seed=config.train.seed + refill,
            step=step,
            shares=data.shares,
        )[:wanted]
        with phases("rollout"):
            samples, counts = answer(models, data, data.train[places], seed=(step, refill))
        retried, failed = retried + counts[0], failed + counts[1]
        samples = replace(samples, groups=samples.groups + asked)
        asked += len(places)
        with phases("scoring"), models.while_rollout_sleeps():
            scored = scorer.score(samples)
        found = Experience(samples, scored, {})
        if not config.experience.max_refills:
            parts.append(found)
            break
        first = first or found
        kept, left_out = _drop_constant_groups(found)
        constant += left_out
        if kept is not None:
            parts.append(kept)
            wanted -= len(np.unique(kept.samples.groups))
        if not wanted:
            break
    parts = parts or ([first.without_penalties] if first else [])
    metrics = {"requests_retried": float(retried), "requests_failed": float(failed)}
    if config.experience.max_refills:
        metrics |= {"prompts_asked": float(asked), "prompts_constant": float(constant)}
    return Experience(
        Samples.join([part.samples for part in parts]),
        Scored.join([part.scored for part in parts]),
        metrics,
    )


def answer(
    models: Models,
    data: PromptData,
    prompts: NDArray[np.int64],
    *,
    seed: tuple[int, ...],
    is_greedy: bool = False,
) -> tuple[Samples, tuple[int, int]]:
    """Answer prompts, group after group; count the requests that were retried, and that failed.

    Args:
        models: The models.
        data: The prompts.
        prompts: Numbers of those that are asked, over all ranks.
        seed: Of this call within the run.
        is_greedy: One answer each, of the most likely tokens, as a validation wants it.

    Raises:
        RunError: Not one request was answered.
    """
    config = models.config
    times = 1 if is_greedy else config.experience.samples
    tokens = [np.asarray(data.prompts[int(prompt)]) for prompt in prompts]
    requests = [
        Request(tokens[group], seed=draw_seed(config.train.seed, *seed, group, sample), group=group)
        for group in range(len(prompts))
        for sample in range(times)
    ]
    models.sync_weights()
    generated = models.rollout.generate(requests, _choose_sampling(models, is_greedy=is_greedy))
    done = [(place, each) for place, each in enumerate(generated.completions) if each is not None]
    if not done:
        raise RunError(
            f"none of {len(requests)} requests was answered by the sampler",
            "the logs of the ranks have its errors",
        )
    samples = Samples(
        prompts=np.asarray([prompts[place // times] for place, _ in done], np.int64),
        groups=np.asarray([place // times for place, _ in done], np.int64),
        questions=[tokens[place // times] for place, _ in done],
        answers=[each.tokens for _, each in done],
        logprobs=np.concatenate([each.logprobs for _, each in done]).astype(np.float64),
        is_finished=np.asarray([each.finish == "stop" for _, each in done]),
    )
    return samples, (generated.num_retried, generated.num_failed)


def _choose_sampling(models: Models, *, is_greedy: bool) -> Sampling:
    settings = models.config.rollout
    if is_greedy:
        return Sampling(settings.max_new_tokens, models.end_token_ids, temperature=0.0)
    return Sampling.of(settings, models.end_token_ids)


def _drop_constant_groups(found: Experience) -> tuple[Experience | None, int]:
    """Keep the answers of the other groups, if any; count the groups that are constant."""
    constant = found.constant_groups
    kept: Sequence[int] = np.flatnonzero(~np.isin(found.samples.groups, constant)).tolist()
    if not kept:
        return None, len(constant)
    return Experience(found.samples.select(kept), found.scored.select(kept), {}), len(constant)
