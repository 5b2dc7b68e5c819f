"""How an episode is learned from by comparing the answers to one prompt."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignctl.algorithms.advantages import group_advantages
from alignctl.algorithms.kl import k1
from alignctl.algorithms.policy_loss import PolicyLoss
from alignctl.config.on_policy_run import GRPOConfig
from alignctl.data.prompt_store import PromptData
from alignctl.on_policy.loop import UpdateResult
from alignctl.on_policy.models import Models
from alignctl.on_policy.rollout_correction import Agreement, check
from alignctl.on_policy.samples import Samples
from alignctl.on_policy.sampling import Experience
from alignctl.on_policy.updates import logprobs_before, name_policy_metrics, plan_updates, update


@dataclass(eq=False)
class GRPO:
    """Learns from an episode by comparing the answers to one prompt."""

    config: GRPOConfig
    models: Models
    total_updates: int

    @classmethod
    def make(cls, config: GRPOConfig, models: Models, data: PromptData) -> "GRPO":
        """Make the learner that the configuration describes."""
        episodes_in_all = config.num_episodes(len(data.train))
        return cls(config, models, episodes_in_all * config.updates_per_step)

    @property
    def state(self) -> dict[str, Any]:
        """Nothing: this learner keeps no values between episodes."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""

    def learn(self, experience: Experience, step: int) -> UpdateResult:
        """Improve the policy."""
        config, models, samples = self.config, self.models, experience.samples
        segments = samples.segments
        reference = kl = None
        if config.needs_reference:
            with models.as_reference() as engine:
                reference = torch.from_numpy(models.target_outputs(engine, samples))
        groups, scored = torch.from_numpy(samples.groups), experience.scored
        compared = group_advantages(torch.from_numpy(scored.rewards), groups, config.baseline)
        advantages = segments.spread(compared.advantages)
        found, logprobs, agreement = self._improve(samples, advantages, reference, step)
        worth = group_advantages(torch.from_numpy(scored.scores), groups, config.baseline)
        constant = np.unique(samples.groups[worth.is_constant.numpy()])
        metrics = dict(agreement.metrics)
        metrics["constant_groups"] = len(constant) / len(np.unique(samples.groups))
        if reference is not None:
            kl = segments.sums(k1(torch.from_numpy(logprobs), reference)).numpy()
            metrics["kl"] = float(kl.mean())
        return UpdateResult(name_policy_metrics(found) | metrics, kl)

    def _improve(
        self, samples: Samples, advantages: Tensor, reference: Tensor | None, step: int
    ) -> tuple[dict[str, float], NDArray[np.float64], Agreement]:
        """Take the episode's optimizer steps.

        Where there is one alone, nothing has moved before it, and its own forward pass finds the
        old log-probabilities. What is compared with the sampler is then known only afterwards, but
        before anything is saved.

        Returns:
            What they found; the policy's log-probabilities before them `[N]`; and how those compare
            with the sampler's.
        """
        config, models = self.config, self.models
        batches = plan_updates(self.config, models.policy, samples, step=step)
        logprobs = None if len(batches) == 1 else logprobs_before(models, batches, samples)
        agreement = None if logprobs is None else check(logprobs, samples, config.trust)
        loss = PolicyLoss(
            config.loss,
            samples.segments,
            advantages,
            old_logprobs=None if logprobs is None else torch.from_numpy(logprobs),
            sampler_logprobs=torch.from_numpy(samples.logprobs),
            trust=config.trust,
            reference=reference,
            kl_coef=config.loss.kl_coef,
            max_tokens=config.rollout.max_new_tokens,
            has_entropy=True,
        )
        with models.on_device(models.policy) as policy:
            updated = update(
                policy,
                config.optimizer,
                loss,
                batches,
                first=step * config.updates_per_step,
                total=self.total_updates,
                max_kl=config.loss.max_kl,
                segments=samples.segments if logprobs is None else None,
            )
        if logprobs is None:
            assert updated.logprobs is not None
            logprobs = updated.logprobs
        return updated.metrics, logprobs, agreement or check(logprobs, samples, config.trust)
