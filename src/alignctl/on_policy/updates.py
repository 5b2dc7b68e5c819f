"""The optimizer steps of an episode: parts of what was gathered, in one pass or several."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignctl.algorithms.loss import Loss
from alignctl.algorithms.samples import Segments
from alignctl.algorithms.schedule import learning_rate
from alignctl.config.on_policy_run import OnPolicyConfig
from alignctl.config.sections import Optimizer
from alignctl.engines.megatron.engine import MegatronEngine
from alignctl.engines.metrics import StepMetrics
from alignctl.engines.protocol import NonFiniteError
from alignctl.errors import RunError
from alignctl.on_policy.models import Models
from alignctl.on_policy.samples import Samples

Batches = Sequence[Any]
"""One rank's micro batches of one optimizer step."""


@dataclass(frozen=True, eq=False)
class Updated:
    """What the optimizer steps of an episode found.

    Attributes:
        metrics: The loss's own and `loss`, as means over the steps by their weights; the mean
            `grad_norm` of those that were not left out; how many `updates` there were; and in
            float16 `loss_scale`, and of all steps so far `skipped_steps`. `trained_tokens` are the
            input tokens of all documents, `computed_tokens` those of them that were computed, in so
            many `micro_batches` of a rank.
        logprobs: Of the policy before them `[N]`, if asked.
    """

    metrics: dict[str, float]
    logprobs: NDArray[np.float64] | None


def split_passes(config: OnPolicyConfig, size: int, *, step: int) -> list[list[list[int]]]:
    """Split each pass over `size` answers or prompts, by their numbers, into optimizer steps.

    Each pass has an order of its own, which follows from the seed and the episode.
    """
    at_once = config.batch.global_batch_size
    found = []
    for epoch in range(config.experience.epochs):
        random = np.random.SeedSequence((config.train.seed, step, epoch))
        order = np.argsort(random.generate_state(size, np.uint64), kind="stable").tolist()
        found.append([order[start : start + at_once] for start in range(0, size, at_once)])
    return found


def plan_updates(
    config: OnPolicyConfig, engine: MegatronEngine, samples: Samples, *, step: int
) -> list[Batches]:
    """Make this rank's micro batches of each optimizer step of an episode, pass after pass.

    A step takes the same answers whether prompts are shared or not, so that it learns the same:
    answers to many prompts, of which those to one lie beside each other.

    Args:
        config: The run.
        engine: The model that learns, whose copies share the answers.
        samples: All answers.
        step: Episodes done before.
    """
    return [
        samples.batches(
            part,
            micro_batch_size=config.batch.micro_batch_size,
            micro_batch_tokens=config.batch.micro_batch_tokens,
            dp_rank=engine.data_parallel_rank,
            dp_size=engine.data_parallel_size,
            share_prompts=config.batch.share_prompts,
        )
        for each in split_passes(config, len(samples), step=step)
        for part in each
    ]


def logprobs_before(
    models: Models, batches: Sequence[Batches], samples: Samples
) -> NDArray[np.float64]:
    """Compute the policy's log-probabilities `[N]` before its updates.

    Computed in the very micro batches of the first pass, where the ratio of new to old is then
    exactly 1.
    """
    of_one_pass = len(batches) // models.config.experience.epochs
    first = [batch for part in batches[:of_one_pass] for batch in part]
    with models.on_device(models.policy) as policy:
        return policy.target_outputs(first, samples.segments)


def update(
    engine: MegatronEngine,
    optimizer: Optimizer,
    loss: Loss,
    batches: Sequence[Batches],
    *,
    first: int,
    total: int,
    max_kl: float | None = None,
    segments: Segments | None = None,
) -> Updated:
    """Take the optimizer steps of an episode for one model, which is on the device.

    Args:
        engine: The model.
        optimizer: Its settings.
        loss: What is minimised.
        batches: Of each optimizer step.
        first: Optimizer steps taken in earlier episodes.
        total: Those of the whole run.
        max_kl: `approx_kl` of a step after which the rest is left out.
        segments: Of all samples, to be told the log-probabilities that the first step finds.

    Returns:
        What they found.

    Raises:
        RunError: The loss or the gradient is not finite; nothing was changed by it.
    """
    results: list[StepMetrics] = []
    for part in batches:
        number = first + len(results)
        taken = number - engine.skipped_steps
        try:
            result = engine.train_step(
                part,
                loss,
                learning_rate=learning_rate(taken, optimizer, total_steps=total),
                segments=None if results else segments,
            )
        except NonFiniteError as error:
            raise RunError(
                f"update {number + 1}: {error}; no weight was changed by it",
                "lower optimizer.lr or raise optimizer.warmup_fraction; samples/ shows the answers",
            ) from error
        results.append(result)
        if max_kl is not None and result.metrics["approx_kl"] > max_kl:
            break
    metrics = _sum_up(results)
    metrics["micro_batches"] = float(sum(map(len, batches[: len(results)])))
    if engine.loss_scale is not None:
        metrics |= {"loss_scale": engine.loss_scale, "skipped_steps": engine.skipped_steps}
    return Updated(metrics, results[0].target_outputs)


def _sum_up(results: Sequence[StepMetrics]) -> dict[str, float]:
    """Sum up the metrics of the steps, of which there is at least one."""
    total = sum(result.weight for result in results) or 1.0
    rows = [({"loss": result.loss, **result.metrics}, result.weight) for result in results]
    metrics = {name: sum(row[name] * weight for row, weight in rows) / total for name in rows[0][0]}
    norms = [result.grad_norm for result in results if result.grad_norm is not None]
    if norms:
        metrics["grad_norm"] = sum(norms) / len(norms)
    metrics["updates"] = float(len(results))
    metrics["trained_tokens"] = sum(result.num_tokens for result in results)
    metrics["computed_tokens"] = sum(result.num_computed_tokens for result in results)
    return metrics


def name_policy_metrics(metrics: dict[str, float]) -> dict[str, float]:
    """Name the metrics of policy updates as a row has them, beside those of the episode.

    There, `kl` is that of whole answers before the updates; the loss's own is per token.
    """
    return {f"token_{n}" if n.startswith("kl") else n: value for n, value in metrics.items()}
