"""How an episode is learned from by proximal policy optimisation."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from alignctl.algorithms.advantages import gae, token_rewards, whiten
from alignctl.algorithms.kl import AdaptiveKL, FixedKL, k1
from alignctl.algorithms.policy_loss import PolicyLoss
from alignctl.algorithms.value_loss import ValueLoss, report
from alignctl.config.on_policy_run import RLHFConfig
from alignctl.data.prompt_store import PromptData
from alignctl.engines.megatron import MegatronEngine
from alignctl.on_policy.loop import UpdateResult
from alignctl.on_policy.models import Models
from alignctl.on_policy.rollout_correction import check
from alignctl.on_policy.sampling import Experience
from alignctl.on_policy.updates import logprobs_before, of_policy, planned, update


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
        """As the configuration says."""
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
        """The controller's."""
        return asdict(self.controller)

    def restore(self, state: dict[str, Any]) -> None:
        """The reverse of `state`."""
        self.controller = type(self.controller)(**state)

    def learn(self, experience: Experience, step: int) -> UpdateResult:
        """Improves the value model, then the policy."""
        config, models, samples = self.config, self.models, experience.samples
        segments = samples.segments
        batches = planned(models, samples, step=step)
        found = logprobs_before(models, batches, samples)
        agreement, logprobs = check(found, samples, config.trust), torch.from_numpy(found)
        with models.as_reference() as engine:
            reference = torch.from_numpy(models.target_outputs(engine, samples))
        values = torch.from_numpy(models.target_outputs(self.value, samples)) + models.value_offset
        kl = segments.sums(k1(logprobs, reference))
        rewards = token_rewards(
            torch.from_numpy(experience.scored.scores),
            logprobs,
            reference,
            segments,
            kl_coef=self.controller.coef,
            lm_coef=config.penalty.lm_coef,
            extra=torch.from_numpy(experience.scored.extra),
        )
        cut = ~torch.from_numpy(samples.is_finished) if config.value.bootstrap_cut else None
        advantages, returns = gae(
            rewards,
            values,
            segments,
            gamma=config.value.gamma,
            lam=config.value.lam,
            bootstrapped=cut,
        )
        metrics = {
            "kl": kl.mean().item(),
            "kl_coef": self.controller.coef,
            "reward": segments.sums(rewards).mean().item(),
            **agreement.metrics,
        }
        self.controller = self.controller.next(metrics["kl"], len(samples))
        policy_loss = PolicyLoss(
            config.loss,
            segments,
            whiten(advantages, agreement.mask),
            old_logprobs=logprobs,
            sampler_logprobs=torch.from_numpy(samples.logprobs),
            trust=config.trust,
            reference=reference,
            max_tokens=config.rollout.max_new_tokens,
            has_entropy=True,
        )
        value_loss = ValueLoss(
            segments,
            values - models.value_offset,
            returns - models.value_offset,
            clip=config.value.clip,
            is_clipped_only=config.value.clipped_only,
        )
        first = step * config.updates_per_step
        with models.on_device(self.value) as value:
            updated = update(
                value,
                config.value.optimizer,
                value_loss,
                batches,
                first=first,
                total=self.total_updates,
            )
        metrics |= {f"value_{name}": each for name, each in report(updated.metrics).items()}
        shown = ("loss", "grad_norm", "loss_scale", "skipped_steps")
        metrics |= {
            f"value_{name}": updated.metrics[name] for name in shown if name in updated.metrics
        }
        if step < self.num_alone:
            return UpdateResult(metrics, kl.numpy())
        with models.on_device(models.policy) as policy:
            updated = update(
                policy,
                config.optimizer,
                policy_loss,
                batches,
                first=first,
                total=self.total_updates,
                max_kl=config.loss.max_kl,
            )
        return UpdateResult(of_policy(updated.metrics) | metrics, kl.numpy())
