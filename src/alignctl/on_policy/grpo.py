"""How an episode is learned from by comparing the answers to one prompt."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignctl.algorithms.advantages import group_advantages
from alignctl.algorithms.kl import k1
from alignctl.config.on_policy_run import GRPOConfig
from alignctl.data.prompt_store import PromptData
from alignctl.on_policy.crew import Crew
from alignctl.on_policy.loop import Lesson
from alignctl.on_policy.only_update import OnlyUpdate, unknown
from alignctl.on_policy.samples import Samples
from alignctl.on_policy.sampling import Gathered
from alignctl.on_policy.trust import Correction, check
from alignctl.on_policy.updates import clipped_loss, logprobs_before, of_policy, planned, update


@dataclass(eq=False)
class GRPO:
    """Learns from an episode by comparing the answers to one prompt."""

    config: GRPOConfig
    crew: Crew
    total_updates: int

    @classmethod
    def make(cls, config: GRPOConfig, crew: Crew, data: PromptData) -> "GRPO":
        """As the configuration says."""
        episodes_in_all = config.num_episodes(len(data.train))
        return cls(config, crew, episodes_in_all * config.updates_per_step)

    @property
    def state(self) -> dict[str, Any]:
        """Nothing is remembered."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of `state`."""

    def learn(self, gathered: Gathered, step: int) -> Lesson:
        """Improves the policy."""
        config, crew, samples = self.config, self.crew, gathered.samples
        segments = samples.segments
        reference = kl = None
        if config.needs_reference:
            with crew.as_reference() as engine:
                reference = torch.from_numpy(crew.target_outputs(engine, samples))
        groups, scored = torch.from_numpy(samples.groups), gathered.scored
        compared = group_advantages(torch.from_numpy(scored.rewards), groups, config.baseline)
        advantages = segments.spread(compared.advantages)
        found, logprobs, trust = self._improve(samples, advantages, reference, step)
        worth = group_advantages(torch.from_numpy(scored.scores), groups, config.baseline)
        constant = np.unique(samples.groups[worth.is_constant.numpy()])
        metrics = dict(trust.metrics)
        metrics["constant_groups"] = len(constant) / len(np.unique(samples.groups))
        if reference is not None:
            kl = segments.sums(k1(logprobs, reference)).numpy()
            metrics["kl"] = float(kl.mean())
        return Lesson(of_policy(found) | metrics, kl)

    def _improve(
        self, samples: Samples, advantages: Tensor, reference: Tensor | None, step: int
    ) -> tuple[dict[str, float], Tensor, Correction]:
        """Takes the episode's optimizer steps.

        Returns:
            What they found; the policy's log-probabilities before them `[N]`; and how those compare
            with the sampler's.
        """
        config, crew, trust = self.config, self.crew, self.config.trust
        batches = planned(crew, samples, step=step)
        is_only = len(batches) == 1
        if is_only:
            logprobs, corrected = unknown(samples, trust)
        else:
            logprobs = logprobs_before(crew, batches, samples)
            corrected = check(logprobs.numpy(), samples, trust)
        policy_loss = clipped_loss(
            config.loss,
            samples.segments,
            logprobs,
            advantages,
            corrected,
            max_new_tokens=config.rollout.max_new_tokens,
            reference=reference,
            kl_coef=config.loss.kl_coef,
        )
        loss = OnlyUpdate(policy_loss, samples, trust) if is_only else policy_loss
        with crew.turn(crew.policy) as policy:
            found = update(
                policy,
                config.optimizer,
                loss,
                batches,
                first=step * config.updates_per_step,
                total=self.total_updates,
                max_kl=config.loss.max_kl,
            )
        if isinstance(loss, OnlyUpdate):
            logprobs = loss.logprobs(crew.policy)
            corrected = check(logprobs.numpy(), samples, trust)
        return found, logprobs, corrected
