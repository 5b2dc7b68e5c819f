"""How an episode is learned from by proximal policy optimisation."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from alignctl.algorithms.advantages import gae, token_rewards, whiten
from alignctl.algorithms.kl import AdaptiveKL, FixedKL, k1
from alignctl.algorithms.value_loss import ValueLoss, report
from alignctl.config.on_policy_run import RLHFConfig
from alignctl.data.prompt_store import PromptData
from alignctl.on_policy.crew import Crew
from alignctl.on_policy.loop import Lesson
from alignctl.on_policy.sampling import Gathered
from alignctl.on_policy.trust import check
from alignctl.on_policy.updates import clipped_loss, logprobs_before, of_policy, planned, update


@dataclass(eq=False)
class PPO:
    """Learns from an episode by PPO."""

    config: RLHFConfig
    crew: Crew
    controller: FixedKL | AdaptiveKL
    total_updates: int
    num_alone: int
    """Episodes at the start in which only the value model learns."""

    @classmethod
    def make(cls, config: RLHFConfig, crew: Crew, data: PromptData) -> "PPO":
        """As the configuration says."""
        penalty, episodes = config.penalty, config.num_episodes(len(data.train))
        adaptive = AdaptiveKL(penalty.coef, penalty.target, penalty.horizon)
        return cls(
            config,
            crew,
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

    def learn(self, gathered: Gathered, step: int) -> Lesson:
        """Improves the value model, then the policy."""
        config, crew, samples = self.config, self.crew, gathered.samples
        segments = samples.segments
        assert crew.value is not None
        batches = planned(crew, samples, step=step)
        logprobs = logprobs_before(crew, batches, samples)
        trust = check(logprobs.numpy(), samples, config.trust)
        with crew.as_reference() as engine:
            reference = torch.from_numpy(crew.target_outputs(engine, samples))
        values = torch.from_numpy(crew.target_outputs(crew.value, samples)) + crew.value_offset
        kl = segments.sums(k1(logprobs, reference))
        rewards = token_rewards(
            torch.from_numpy(gathered.scored.scores),
            logprobs,
            reference,
            segments,
            kl_coef=self.controller.coef,
            lm_coef=config.penalty.lm_coef,
            extra=torch.from_numpy(gathered.scored.extra),
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
            **trust.metrics,
        }
        self.controller = self.controller.next(metrics["kl"], len(samples))
        policy_loss = clipped_loss(
            config.loss,
            segments,
            logprobs,
            whiten(advantages, trust.mask),
            trust,
            max_new_tokens=config.rollout.max_new_tokens,
            reference=reference,
        )
        value_loss = ValueLoss(
            segments,
            values - crew.value_offset,
            returns - crew.value_offset,
            clip=config.value.clip,
            is_clipped_only=config.value.clipped_only,
        )
        first = step * config.updates_per_step
        with crew.turn(crew.value) as value:
            found = update(
                value,
                config.value.optimizer,
                value_loss,
                batches,
                first=first,
                total=self.total_updates,
            )
        metrics |= {f"value_{name}": each for name, each in report(found).items()}
        shown = ("loss", "grad_norm", "loss_scale", "skipped_steps")
        metrics |= {f"value_{name}": found[name] for name in shown if name in found}
        if step < self.num_alone:
            return Lesson(metrics, kl.numpy())
        with crew.turn(crew.policy) as policy:
            found = update(
                policy,
                config.optimizer,
                policy_loss,
                batches,
                first=first,
                total=self.total_updates,
                max_kl=config.loss.max_kl,
            )
        return Lesson(of_policy(found) | metrics, kl.numpy())
