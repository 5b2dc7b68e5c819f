"""How good answers are: by a reward model, by the rule that each row names, by one's own rewards.

They are added; the penalties of length and of repetitions come beside the sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self, get_args

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from alignctl.algorithms.scores import RunningStd, overlong_penalty, shape_scores
from alignctl.config.on_policy import Score
from alignctl.data.prompt_store import PromptData
from alignctl.data.tokenizer import Tokenizer
from alignctl.engines.device import DEVICE
from alignctl.errors import RunError
from alignctl.on_policy.models import Models
from alignctl.on_policy.own_rewards import OwnRewards, Part
from alignctl.on_policy.samples import Samples
from alignctl.rewards.combine import combine, repetition_penalty
from alignctl.rewards.rules import Reason
from alignctl.rewards.workers import RuleWorkers, Task

REASONS: tuple[Reason, ...] = get_args(Reason)
"""What a rule can find; answers refer to them by number."""

_UNJUDGED = -1


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores of answers, the same on every rank.

    Attributes:
        scores: By all rewards together, shaped `[S]`: what the answers are worth.
        model: As the reward model gave them, with its offset `[S]`; None without one.
        reasons: What the rule found, a place in `REASONS` `[S]`; -1 where a row names no rule.
        extra: What is added to that, and no shaping touches `[S]`: the penalties of length and of
            repetitions, zero or less. They say nothing about what is right.
        parts: The rewards whose sum the scores are, where there are some of one's own.
    """

    scores: NDArray[np.float64]
    model: NDArray[np.float64] | None
    reasons: NDArray[np.int64]
    extra: NDArray[np.float64]
    parts: tuple[Part, ...] = ()

    @property
    def rewards(self) -> NDArray[np.float64]:
        """Rewards by which answers are compared, `[S]`."""
        return self.scores + self.extra

    def select(self, samples: Sequence[int]) -> Self:
        """Select these answers alone, in this order."""
        return type(self)(
            self.scores[samples],
            None if self.model is None else self.model[samples],
            self.reasons[samples],
            self.extra[samples],
            tuple(part.select(samples) for part in self.parts),
        )

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Join the scores of several, end to end."""
        models = [part.model for part in parts if part.model is not None]
        return cls(
            np.concatenate([part.scores for part in parts]),
            np.concatenate(models) if models else None,
            np.concatenate([part.reasons for part in parts]),
            np.concatenate([part.extra for part in parts]),
            tuple(map(Part.join, zip(*(each.parts for each in parts), strict=True))),
        )

    @property
    def metrics(self) -> dict[str, float]:
        """Means for a reader: of the model, and how often the rule found what."""
        found = {"score": float(self.scores.mean()), "score_std": float(self.scores.std())}
        if self.extra.any():
            found["penalty"] = float(self.extra.mean())
        if self.model is not None:
            found["model_score"] = float(self.model.mean())
        judged = self.reasons[self.reasons != _UNJUDGED]
        if len(judged):
            found["accuracy"] = float((judged == REASONS.index("correct")).mean())
            for place, reason in enumerate(REASONS):
                if reason not in ("correct", "wrong"):
                    found[f"rule_{reason}"] = float((judged == place).mean())
        if self.parts:
            total = np.sum([part.weighted for part in self.parts], axis=0)
            for part in self.parts:
                found |= part.told(total)
        return found


@dataclass(frozen=True, eq=False)
class Judge:
    """Applies the rules that rows name to answers.

    Attributes:
        tokenizer: Of the policy.
        workers: This rank's processes that do it.
    """

    tokenizer: Tokenizer
    workers: RuleWorkers


@dataclass(eq=False)
class Scorer:
    """Scores the answers of all ranks.

    Attributes:
        models: The models.
        data: The prompts, with the answers that are expected.
        judge: Applies rules; None where no row names one.
        own: Applies rewards of one's own, where there are any.
        running: Deviation of the reward model's scores so far.
    """

    models: Models
    data: PromptData
    judge: Judge | None
    own: OwnRewards | None = None
    running: RunningStd = field(default_factory=RunningStd)

    @property
    def settings(self) -> Score:
        """Settings of how scores are made."""
        return self.models.config.score

    def score(self, samples: Samples, *, is_validation: bool = False) -> Scored:
        """Score answers.

        Args:
            samples: The answers.
            is_validation: Whether the deviation so far is to stay as it is.

        Raises:
            RunError: The reward model gives a score that is not finite, or a reward of one's own
                gives none at all.
        """
        settings = self.settings
        wait = self.own.start(samples) if self.own is not None else list
        model = self._score_by_model(samples.end_by(self.models.end_token_ids[0]))
        reasons = self._judge_by_rule(samples)
        has_eos = torch.from_numpy(samples.is_finished)
        shaped = np.zeros(len(samples))
        if model is not None:
            exact, scale = torch.from_numpy(model - settings.bias), 1.0
            if settings.scale == "running":
                running = self.running.merge(exact)
                scale = running.std
                self.running = self.running if is_validation else running
            shaped = shape_scores(
                exact, has_eos, missing_eos="keep", clip=settings.clip, scale=scale
            ).numpy()
        rule = (reasons == REASONS.index("correct")).astype(np.float64)
        combined = combine(
            settings.source, model=shaped, rule=rule, model_weight=settings.model_coef
        )
        parts = wait()
        for part in parts:
            combined = combined + part.weighted
        total = shape_scores(
            torch.from_numpy(combined),
            has_eos,
            missing_eos=settings.of_cut_answers,
            missing_eos_score=settings.missing_eos_score,
        )
        if parts:
            parts = [*self._others(rule, model, shaped), *parts]
        scores, penalties = total.double().numpy(), self._penalties(samples)
        return Scored(scores, model, reasons, penalties, tuple(parts))

    def _others(
        self,
        rule: NDArray[np.float64],
        model: NDArray[np.float64] | None,
        shaped: NDArray[np.float64],
    ) -> list[Part]:
        """Make parts of the rule and of the reward model, as far as they count."""
        source, unfailed = self.settings.source, [None] * len(rule)
        parts = []
        if source in ("sparse_only", "merge"):
            parts.append(Part("rule", 1.0, rule, rule, unfailed))
        if model is not None:
            parts.append(Part("model", self.settings.model_coef, model, shaped, unfailed))
        return parts

    def _penalties(self, samples: Samples) -> NDArray[np.float64]:
        """Compute the penalties of length and of repetitions `[S]`."""
        settings, found = self.settings, np.zeros(len(samples))
        if settings.overlong_buffer is not None:
            overlong = overlong_penalty(
                torch.from_numpy(samples.lengths),
                max_new_tokens=self.models.config.rollout.max_new_tokens,
                buffer=settings.overlong_buffer,
            )
            found += overlong.double().numpy()
        if settings.ngram_coef:
            repetitions = [repetition_penalty(answer.tolist()) for answer in samples.answers]
            found += settings.ngram_coef * np.asarray(repetitions)
        return found

    def _score_by_model(self, samples: Samples) -> NDArray[np.float64] | None:
        """Score answers `[S]`; scores of equal answers are equal to the last bit."""
        if self.models.reward is None:
            return None
        distinct, places = samples.distinct
        found = self.models.document_outputs(self.models.reward, samples.select(distinct))
        scores: NDArray[np.float64] = found[places] + self.models.score_offset
        if wrong := np.flatnonzero(~np.isfinite(scores)).tolist():
            where = self.data.where(int(samples.prompts[wrong[0]]))
            raise RunError(
                f"{where}: the reward model scores {len(wrong)} of {len(scores)} answers with "
                f"{scores[wrong[0]]}; this is the prompt of the first",
                f"the weights of {self.models.config.reward_load} may not be finite",
            )
        return scores

    def _judge_by_rule(self, samples: Samples) -> NDArray[np.int64]:
        """Judge each answer by its rule `[S]`; every rank judges its share."""
        reasons = torch.zeros(len(samples), dtype=torch.int64)
        if self.judge is None:
            return np.full(len(samples), _UNJUDGED)
        own = range(dist.get_rank(), len(samples), dist.get_world_size())
        tasks, places = [], []
        for sample in own:
            prompt = int(samples.prompts[sample])
            rule, expected = self.data.eval_funcs[prompt], self.data.answers[prompt]
            if rule is not None and expected is not None:
                text = self.judge.tokenizer.decode_answer(samples.said(sample))
                tasks.append(Task(text, expected, rule))
                places.append(sample)
        for place, verdict in zip(places, self.judge.workers.verdicts(tasks), strict=True):
            reasons[place] = REASONS.index(verdict.reason) + 1
        reasons = reasons.to(DEVICE)
        dist.all_reduce(reasons)
        return (reasons - 1).cpu().numpy()
