"""A stage's memory on one rank of each kind, computed: what `--simulate` finds by running it."""

import math
from collections.abc import Mapping

from alignctl.config.on_policy_run import OnPolicyConfig, is_on_policy
from alignctl.config.run import TrainingConfig
from alignctl.config.sections import Head
from alignctl.data.batch import is_worth_sharing
from alignctl.planning.budget import counted
from alignctl.planning.memory import (
    GIB,
    Held,
    Part,
    Tokens,
    forward_activations,
    held,
    push_work,
    training_activations,
)
from alignctl.planning.report import Phase, RankReport, Report, largest
from alignctl.planning.sampler import sampler


def predict(config: TrainingConfig, *, gpu_memory_gib: float = 80.0) -> Report:
    """Compute the report of a job, by arithmetic."""
    ranks = tuple(
        largest([_episode(each, kind, stage, gpu_memory_gib) for each in counted(config)])
        if is_on_policy(config)
        else _training(config, kind, stage)
        for kind, stage in kinds_of_ranks(config).items()
    )
    return Report(
        describe(config),
        ranks,
        gpu_memory_gib,
        sampler(config, gpu_memory_gib) if is_on_policy(config) else None,
        config.launch.nproc_per_node,
    )


def describe(config: TrainingConfig) -> str:
    """Describe a job in a line."""
    parallel, batch = config.parallel, config.batch
    tokens = config.batch.micro_batch_tokens if is_on_policy(config) else None
    size = f"{batch.micro_batch_size}" if tokens is None else f"{tokens:,} tokens"
    return (
        f"{config.preset} {config.stage}: {config.world_size} GPUs, TP {parallel.tp} x "
        f"PP {parallel.pp} x DP {config.data_parallel_size}, {config.precision}, batch "
        f"{batch.global_batch_size} in micro batches of {size}, "
        f"{batch.seq_length:,} tokens, recompute {parallel.recompute}"
    )


def kinds_of_ranks(config: TrainingConfig) -> dict[str, int]:
    """List the pipeline stages that differ, by name: the first, one in the middle, the last.

    Of the middle ones it is the one that has most micro batches under way.
    """
    pp = config.parallel.pp
    if pp == 1:
        return {"every rank": 0}
    middle = {"middle stages": 1} if pp > 2 else {}
    return {"first stage": 0, **middle, "last stage": pp - 1}


def answers_together(config: OnPolicyConfig, size: int, *, is_learned: bool = False) -> int:
    """Count the answers in a batch of `size` that are to one prompt, which is computed once.

    As many as are in every batch that a group of `experience.samples` may be cut into, at least.

    Args:
        config: The run.
        size: Answers in the batch.
        is_learned: Whether the batch is learned from: of several updates in an episode each takes
            answers to any prompts, unless answers are compared.
    """
    is_mixed = (
        config.answers_compared == 1 and config.units_per_step > config.batch.global_batch_size
    )
    if not config.batch.share_prompts or (is_learned and is_mixed):
        return 1
    if is_learned and config.answers_kept_together > 1:
        return config.answers_kept_together
    return math.gcd(size, config.experience.samples)


def tokens_of_batch(config: TrainingConfig) -> Tokens:
    """Count the tokens of a micro batch of full length.

    What rows of preferences have in common is not known without them: nothing, it is supposed.
    """
    longest = config.longest_batch
    count = longest.documents
    if is_on_policy(config):
        return _answers(config, count, longest.length, is_learned=True)
    return Tokens(count * longest.length, longest.length, count * longest.learned)


def _answers(
    config: OnPolicyConfig, count: int, length: int, *, is_learned: bool = False
) -> Tokens:
    """Count tokens of answers of the greatest length to the longest prompts."""
    learned = count * config.rollout.max_new_tokens
    # The last token of a prompt predicts the first one of each answer.
    together = answers_together(config, count, is_learned=is_learned)
    shared = config.data.max_prompt_length - 1
    if not is_worth_sharing(shared, [length] * together):
        return Tokens(count * length, length, learned)
    spared = (count - count // together) * shared
    return Tokens(count * length - spared, length, learned, continued=count * length)


def micro_batches_under_way(config: TrainingConfig, stage: int) -> int:
    """Count micro batches that are forward and not yet backward: in 1F1B pp - stage at most."""
    return min(config.num_micro_batches, config.parallel.pp - stage)


def _part(config: TrainingConfig, stage: int, head: Head) -> Part:
    attention = config.kernels.choose(
        config.architecture, is_gpu=True, has_transformer_engine=False
    )
    return Part(config.architecture, config.parallel, stage, head, config.precision, attention)


def _training(config: TrainingConfig, kind: str, stage: int) -> RankReport:
    """Report on a rank of `sft`, `reward` or `dpo`: one model."""
    part = _part(config, stage, config.roles["model"].head)
    kept = held(part, config.data_parallel_size, is_trained=True, lora=config.lora)
    tokens = tokens_of_batch(config)
    phases = {}
    if config.needs_reference:
        phases["reference"] = _phase(kept.total, forward_activations(part, tokens))
    under_way = micro_batches_under_way(config, stage)
    work = training_activations(
        part, tokens, under_way, trains_head=config.lora is None, lora=config.lora
    )
    phases["step"] = _phase(kept.total, work)
    return RankReport(kind, {"model": kept}, phases)


def _episode(config: OnPolicyConfig, kind: str, stage: int, gpu_memory_gib: float) -> RankReport:
    """Report on a rank of `rlhf`, `online-dpo` or `grpo`: several models, which take turns."""
    policy, other = _part(config, stage, "lm"), _part(config, stage, "linear")
    dp = config.data_parallel_size
    models = {
        name: held(
            _part(config, stage, role.head),
            dp,
            is_trained=role.is_trained,
            lora=config.lora if role.is_trained else None,
        )
        for name, role in config.roles.items()
    }
    share = int(config.rollout.gpu_memory_utilization * gpu_memory_gib * GIB)
    step, under_way = tokens_of_batch(config), micro_batches_under_way(config, stage)
    count = min(config.experience.score_batch_size, -(-config.samples_per_step // dp))
    scoring = _answers(config, count, config.longest_answer - 1)
    work = {
        "policy": training_activations(policy, step, under_way, trains_head=config.lora is None),
        "reference": forward_activations(policy, scoring),
        "reward": forward_activations(other, _answers(config, count, config.longest_answer)),
        "value": training_activations(other, step, under_way),
    }
    if config.needs_reference and config.lora is not None:  # the policy without its adapters
        work["policy"] = max(work["policy"], work["reference"])
    resident = 0 if config.offload else sum(each.total for each in models.values())
    asleep = 0 if config.rollout.sleep else share
    phases = {"start": _phase(sum(map(_at_start, models.values(), [config] * len(models))), 0)}
    phases["sampling"] = _phase(resident, 0, share)
    phases["push"] = _phase(resident or models["policy"].total, push_work(policy), share)
    for role, model in models.items():
        phases[role] = _phase(resident or model.total, work[role], asleep)
    return RankReport(kind, models, phases, waiting(config, models))


def waiting(config: OnPolicyConfig, models: Mapping[str, Held]) -> int:
    """Count the bytes of the CPU's memory: gradients are not kept there, they are dropped."""
    found = sum(each.weights + each.optimizer for each in models.values())
    return found if config.offload else 0


def _at_start(model: Held, config: OnPolicyConfig) -> int:
    """Count bytes before the first step, which makes the moments, 8 of the 12 (8 of 8 in fp32)."""
    masters = 0 if config.precision == "fp32" else model.optimizer // 3
    return model.weights + model.gradients + masters


def _phase(kept: int, work: int, sampler: int = 0) -> Phase:
    return Phase(kept + work + sampler, work, sampler=sampler)
