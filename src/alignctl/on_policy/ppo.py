"""How an episode is learned from by proximal policy optimisation."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from alignctl.algorithms.advantages import gae, token_rewards, whiten
from alignctl.algorithms.kl import AdaptiveKL, FixedKL, k1
from alignctl.algorithms.policy_loss import PolicyLoss
from alignctl.algorithms.value_loss import ValueLoss, report
from alignctl.config.on_policy_run import RLHFConfig
from alignctl.data.prompt_store import PromptData
from alignctl.engines.megatron.engine import MegatronEngine
from alignctl.on_policy.loop import UpdateResult
from alignctl.on_policy.models import Models
from alignctl.on_policy.rollout_correction import check
from alignctl.on_policy.samples import Samples
from alignctl.on_policy.sampling import Experience
from alignctl.on_policy.updates import (
    Batches,
    logprobs_before,
    name_policy_metrics,
    plan_updates,
    update,
)


@dataclass(eq=False)
class PPO:
    """Learns from an episode by PPO."""

    config: RLHFConfig
    models: Models
    value: MegatronEngine
    controller: FixedKL | AdaptiveKL
    total_updates: int
    num_alone: int
    """Episodes at the start in which only the value model learns."""

    @classmethod
    def make(cls, config: RLHFConfig, models: Models, data: PromptData) -> "PPO":
        """Make the learner that the configuration describes."""
        assert models.value is not None
        penalty, episodes = config.penalty, config.num_episodes(len(data.train))
        adaptive = AdaptiveKL(penalty.coef, penalty.target, penalty.horizon)
        return cls(
            config,
            models,
            models.value,
            adaptive if penalty.controller == "adaptive" else FixedKL(penalty.coef),
            episodes * config.updates_per_step,
            config.value_warmup(episodes),
        )

    @property
    def state(self) -> dict[str, Any]:
        """State of the KL controller."""
        return asdict(self.controller)

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.controller = type(self.controller)(**state)

    def learn(self, experience: Experience, step: int) -> UpdateResult:
        """Improve the value model, then the policy."""
        models, samples = self.models, experience.samples
        segments = samples.segments
        batches = plan_updates(self.config, models.policy, samples, step=step)
        found = logprobs_before(models, batches, samples)
        agreement, logprobs = check(found, samples, self.config.trust), torch.from_numpy(found)
        with models.as_reference() as engine:
            reference = torch.from_numpy(models.target_outputs(engine, samples))
        values = torch.from_numpy(models.target_outputs(self.value, samples)) + models.value_offset
        kl = segments.sums(k1(logprobs, reference))
        rewards = self._reward_tokens(experience, logprobs, reference)
        advantages, returns = self._estimate_advantages(rewards, values, samples)
        metrics = {
            "kl": kl.mean().item(),
            "kl_coef": self.controller.coef,
            "reward": segments.sums(rewards).mean().item(),
            **agreement.metrics,
        }
        self.controller = self.controller.next(metrics["kl"], len(samples))
        policy_loss = PolicyLoss(
            self.config.loss,
            segments,
            whiten(advantages, agreement.mask),
            old_logprobs=logprobs,
            sampler_logprobs=torch.from_numpy(samples.logprobs),
            trust=self.config.trust,
            reference=reference,
            max_tokens=self.config.rollout.max_new_tokens,
            has_entropy=True,
        )
        value_loss = ValueLoss(
            segments,
            values - models.value_offset,
            returns - models.value_offset,
            clip=self.config.value.clip,
            is_clipped_only=self.config.value.clipped_only,
        )
        if self.value.groups is models.policy.groups:
            own = batches
        else:
            own = plan_updates(self.config, self.value, samples, step=step)
        metrics |= self._update_value(value_loss, own, step)
        if step >= self.num_alone:
            metrics = self._update_policy(policy_loss, batches, step) | metrics
        return UpdateResult(metrics, kl.numpy())

    def _reward_tokens(self, experience: Experience, logprobs: Tensor, reference: Tensor) -> Tensor:
        """Give each learned token its reward `[N]`: the KL penalty, and the score at the end."""
        return token_rewards(
            torch.from_numpy(experience.scored.scores),
            logprobs,
            reference,
            experience.samples.segments,
            kl_coef=self.controller.coef,
            lm_coef=self.config.penalty.lm_coef,
            extra=torch.from_numpy(experience.scored.extra),
        )

    def _estimate_advantages(
        self, rewards: Tensor, values: Tensor, samples: Samples
    ) -> tuple[Tensor, Tensor]:
        """Estimate the advantages and the returns of all learned tokens `[N]`."""
        settings = self.config.value
        cut = ~torch.from_numpy(samples.is_finished) if settings.bootstrap_cut else None
        return gae(
            rewards,
            values,
            samples.segments,
            gamma=settings.gamma,
            lam=settings.lam,
            bootstrapped=cut,
        )

    def _update_value(
        self, loss: ValueLoss, batches: Sequence[Batches], step: int
    ) -> dict[str, float]:
        """Improve the value model; return the metrics that a user reads."""
        with self.models.on_device(self.value) as value:
            updated = update(
                value,
                self.config.value.optimizer,
                loss,
                batches,
                first=step * self.config.updates_per_step,
                total=self.total_updates,
            )
        metrics = {f"value_{name}": each for name, each in report(updated.metrics).items()}
        shown = ("loss", "grad_norm", "loss_scale", "skipped_steps")
        return metrics | {
            f"value_{name}": updated.metrics[name] for name in shown if name in updated.metrics
        }

    def _update_policy(
        self, loss: PolicyLoss, batches: Sequence[Batches], step: int
    ) -> dict[str, float]:
        """Improve the policy; return the metrics that a user reads."""
        with self.models.on_device(self.models.policy) as policy:
            updated = update(
                policy,
                self.config.optimizer,
                loss,
                batches,
                first=step * self.config.updates_per_step,
                total=self.total_updates,
                max_kl=self.config.loss.max_kl,
            )
        return name_policy_metrics(updated.metrics)
