"""How an episode is learned from by preferring its better answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from alignctl.algorithms.dpo import DPO
from alignctl.algorithms.online_pairs import choose_pairs
from alignctl.config.on_policy_run import OnlineDPOConfig
from alignctl.data.batch import (
    Document,
    Pairs,
    PreferenceBatch,
    count_computed,
    with_every_token_an_input,
)
from alignctl.data.micro_batches import dealt_micro_batches
from alignctl.data.prompt_store import PromptData
from alignctl.on_policy.loop import UpdateResult
from alignctl.on_policy.models import Models
from alignctl.on_policy.rollout_correction import check
from alignctl.on_policy.samples import Samples
from alignctl.on_policy.sampling import Experience
from alignctl.on_policy.updates import Batches, split_passes, update


@dataclass(eq=False)
class OnlineDPO:
    """Learns from an episode by preferring its better answers."""

    config: OnlineDPOConfig
    models: Models
    total_updates: int

    @classmethod
    def make(cls, config: OnlineDPOConfig, models: Models, data: PromptData) -> "OnlineDPO":
        """Make the learner that the configuration describes."""
        total = config.num_episodes(len(data.train)) * config.updates_per_step
        return cls(config, models, total)

    @property
    def state(self) -> dict[str, Any]:
        """Nothing: this learner keeps no values between episodes."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""

    def learn(self, experience: Experience, step: int) -> UpdateResult:
        """Improve the policy."""
        config, models, samples = self.config, self.models, experience.samples
        logprobs = models.target_outputs(models.policy, samples)
        # Pairs cannot be corrected token by token; a mismatch beyond the limit still stops the run.
        metrics = check(logprobs, samples, config.trust).metrics
        with models.as_reference() as engine:
            reference = models.document_outputs(engine, samples)
        kl = samples.segments.sums(torch.from_numpy(logprobs)).numpy() - reference
        metrics["kl"] = float(kl.mean())
        scores = experience.scored.rewards
        # Of two cut answers the one that repeats itself less would be an example to follow.
        may_win = None if config.score.of_cut_answers == "keep" else samples.is_finished
        pairs, without = choose_pairs(scores, samples.groups, config.pairs, may_win)
        metrics |= {"pairs": float(len(pairs.better)), "prompts_without_pair": float(without)}
        if not len(pairs.better):
            return UpdateResult(metrics, kl)
        compared = _group_compared(pairs, samples.groups)
        loss = DPO(
            reference,
            variant=config.loss.variant,
            beta=config.loss.beta,
            label_smoothing=config.loss.label_smoothing,
            nll=config.loss.nll,
        )
        with models.on_device(models.policy) as policy:
            updated = update(
                policy,
                config.optimizer,
                loss,
                [
                    self._batches([compared[place] for place in part], samples, scores)
                    for each in split_passes(config, len(compared), step=step)
                    for part in each
                ],
                first=step * config.updates_per_step,
                total=self.total_updates,
            )
        # `accuracy` is the rule's; this one says how often the policy agrees with the pairs.
        found = {"pair_accuracy" if n == "accuracy" else n: v for n, v in updated.metrics.items()}
        return UpdateResult(found | metrics, kl)

    def _batches(
        self, groups: Sequence[list[int]], samples: Samples, scores: NDArray[np.float64]
    ) -> Batches:
        """Make this rank's micro batches of some prompts, each with the answers compared."""
        policy, batch = self.models.policy, self.config.batch
        documents = [[samples.document(each) for each in group] for group in groups]
        count = _count_tokens
        if batch.share_prompts:
            count = count_computed if batch.micro_batch_tokens is None else _count_exactly
        parts = dealt_micro_batches(
            [count(group) for group in documents],
            micro_batch_size=batch.micro_batch_size,
            micro_batch_tokens=batch.micro_batch_tokens,
            dp_rank=policy.data_parallel_rank,
            dp_size=policy.data_parallel_size,
        )
        return [
            PreferenceBatch.from_groups(
                [documents[place] for place in part],
                scores[[each for place in part for each in groups[place]]],
                share_prompts=batch.share_prompts,
            )
            for part in parts
        ]


def _count_tokens(documents: Sequence[Document]) -> int:
    return sum(len(document.tokens) for document in documents)


def _count_exactly(documents: Sequence[Document]) -> int:
    """Count as `count_computed` what a batch of preferences computes: every token is an input."""
    return count_computed([with_every_token_an_input(document) for document in documents])


def _group_compared(pairs: Pairs, groups: NDArray[np.int64]) -> list[list[int]]:
    """Group the answers that are in a pair by their prompt."""
    members = np.unique(np.concatenate([pairs.better, pairs.worse]))
    return [members[groups[members] == group].tolist() for group in np.unique(groups[members])]
