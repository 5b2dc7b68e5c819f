"""How an episode is learned from by comparing the answers to one prompt."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from alignctl.algorithms.advantages import group_advantages
from alignctl.algorithms.kl import k1
from alignctl.config.on_policy_run import GRPOConfig
from alignctl.data.prompt_store import PromptData
from alignctl.on_policy.crew import Crew
from alignctl.on_policy.loop import Lesson
from alignctl.on_policy.sampling import Gathered
from alignctl.on_policy.trust import check
from alignctl.on_policy.updates import clipped_loss, of_policy, planned, update


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
        config, crew, samples, loss = self.config, self.crew, gathered.samples, self.config.loss
        segments = samples.segments
        batches, logprobs = planned(crew, samples, step=step)
        trust = check(logprobs.numpy(), samples, config.trust)
        metrics = dict(trust.metrics)
        reference = kl = None
        if crew.reference is not None:
            reference = torch.from_numpy(crew.target_outputs(crew.reference, samples))
            kl = segments.sums(k1(logprobs, reference)).numpy()
            metrics["kl"] = float(kl.mean())
        groups = group_advantages(
            torch.from_numpy(gathered.scored.rewards),
            torch.from_numpy(samples.groups),
            config.baseline,
        )
        constant = np.unique(samples.groups[groups.is_constant.numpy()])
        metrics["constant_groups"] = len(constant) / len(np.unique(samples.groups))
        policy_loss = clipped_loss(
            loss,
            segments,
            logprobs,
            segments.spread(groups.advantages),
            trust,
            max_new_tokens=config.rollout.max_new_tokens,
            reference=reference,
            kl_coef=loss.kl_coef,
        )
        with crew.turn(crew.policy) as policy:
            found = update(
                policy,
                config.optimizer,
                policy_loss,
                batches,
                first=step * config.updates_per_step,
                total=self.total_updates,
                max_kl=loss.max_kl,
            )
        return Lesson(of_policy(found) | metrics, kl)
