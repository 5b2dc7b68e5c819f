"""How an episode is learned from by comparing the answers to one prompt."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from alignctl.algorithms.advantages import group_advantages
from alignctl.algorithms.kl import k1
from alignctl.algorithms.policy_loss import PolicyLoss
from alignctl.config.on_policy_run import GRPOConfig
from alignctl.data.prompt_store import PromptData
from alignctl.on_policy.crew import Crew
from alignctl.on_policy.loop import Lesson
from alignctl.on_policy.sampling import Gathered
from alignctl.on_policy.trust import check
from alignctl.on_policy.updates import batches_of, of_policy, passes, update


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
        plan = [
            [batches_of(config, crew.policy, samples, part) for part in each]
            for each in passes(config, len(samples), step=step)
        ]
        with crew.turn(crew.policy) as policy:
            # In the very micro batches of the first pass, whose ratio is then exactly 1.
            old = policy.target_outputs([batch for part in plan[0] for batch in part], segments)
        trust = check(old, samples, config.trust)
        metrics = dict(trust.metrics)
        logprobs = torch.from_numpy(old)
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
        policy_loss = PolicyLoss(
            segments,
            logprobs,
            segments.spread(groups.advantages),
            reference=reference,
            weights=trust.weights,
            mask=trust.mask,
            variant=loss.variant,
            clip_low=loss.clip_low,
            clip_high=loss.clip_high,
            dual_clip=loss.dual_clip,
            aggregation=loss.aggregation,
            max_tokens=config.rollout.max_new_tokens if loss.aggregation == "constant" else None,
            kl_coef=loss.kl_coef,
            entropy_coef=loss.entropy_coef,
            has_entropy=True,
        )
        with crew.turn(crew.policy) as policy:
            found = update(
                policy,
                config.optimizer,
                policy_loss,
                [part for each in plan for part in each],
                first=step * config.updates_per_step,
                total=self.total_updates,
                max_kl=loss.max_kl,
            )
        return Lesson(of_policy(found) | metrics, kl)
