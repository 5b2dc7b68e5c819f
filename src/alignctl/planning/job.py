"""A stage's memory on one rank of each kind, computed: what `--simulate` finds by running it."""

import math
from collections.abc import Mapping

from alignctl.config.on_policy_run import OnPolicyConfig, is_on_policy
from alignctl.config.run import TrainingConfig
from alignctl.config.sections import Head, Parallel
from alignctl.data.batch import is_worth_sharing
from alignctl.errors import UserError
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
    """Compute the report of a job, by arithmetic.

    Raises:
        UserError: A model cannot be cut as its role says.
    """
    check_cuts(config)
    ranks = tuple(
        largest([_episode(each, kind, rank, gpu_memory_gib) for each in counted(config)])
        if is_on_policy(config)
        else _training(config, kind, rank)
        for kind, rank in kinds_of_ranks(config).items()
    )
    return Report(
        describe(config),
        ranks,
        gpu_memory_gib,
        sampler(config, gpu_memory_gib) if is_on_policy(config) else None,
        config.launch.nproc_per_node,
    )


def check_cuts(config: TrainingConfig) -> None:
    """Check that models beside the policy can be cut as their roles say, if they are of its size.

    Nothing is known of their own sizes where nothing is loaded.

    Raises:
        UserError: One cannot.
    """
    for name, model in config.models.items():
        layout, key = model.parallel, f"roles.{name}.parallel."
        problems = config.architecture.layout_problems(layout.tp, layout.pp, prefix=key)
        if problems:
            raise UserError(
                f"the {name} model is supposed to be as large as the policy, and cannot be cut as "
                f"{key[:-1]} says: {'; '.join(problems)}",
                f"choose {key}tp and {key}pp that divide it",
            )


def describe(config: TrainingConfig) -> str:
    """Describe a job in a line."""
    parallel, batch = config.parallel, config.batch
    tokens = config.batch.micro_batch_tokens if is_on_policy(config) else None
    size = f"{batch.micro_batch_size}" if tokens is None else f"{tokens:,} tokens"
    others = "".join(
        f"{role} {_sizes(config, model.parallel)}, "
        for role, model in config.models.items()
        if model.parallel != parallel
    )
    return (
        f"{config.preset} {config.stage}: {config.world_size} GPUs, {_sizes(config, parallel)}, "
        f"{others}{config.precision}, batch "
        f"{batch.global_batch_size} in micro batches of {size}, "
        f"{batch.seq_length:,} tokens, recompute {parallel.recompute}"
    )


def _sizes(config: TrainingConfig, layout: Parallel) -> str:
    return f"TP {layout.tp} x PP {layout.pp} x DP {config.copies_of(layout)}"


def kinds_of_ranks(config: TrainingConfig) -> dict[str, int]:
    """List a rank of each kind, by what it is: of the first pipeline stage, a middle one, the last.

    Of the middle ones it is the one that has most micro batches under way. Where models have
    different numbers of stages, kinds are those of all models together.
    """
    depths = list(dict.fromkeys(model.parallel.pp for model in config.models.values()))
    parts = math.lcm(*depths)  # ranks of a part are of the same stage of each model
    places: dict[tuple[str, ...], int] = {}
    for part in range(parts):
        kind = tuple(_place(part * pp // parts, pp) for pp in depths if pp > 1)
        places.setdefault(kind, part * config.world_size // parts)
    names = ((kind[0] if kind else "every rank") for kind in places)
    if len([pp for pp in depths if pp > 1]) > 1:
        names = (f"as rank {rank}" for rank in places.values())
    return dict(zip(names, places.values(), strict=True))


def _place(stage: int, pp: int) -> str:
    return "first stage" if stage == 0 else "last stage" if stage == pp - 1 else "middle stages"


def stage_of(config: TrainingConfig, layout: Parallel, rank: int) -> int:
    """Find the pipeline stage of a rank in a model of this layout."""
    return rank * layout.pp // config.world_size


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


def micro_batches_under_way(config: TrainingConfig, layout: Parallel, rank: int) -> int:
    """Count micro batches that are forward and not yet backward: in 1F1B pp - stage at most."""
    stage = stage_of(config, layout, rank)
    return min(config.micro_batches_of(layout), layout.pp - stage)


def _part(config: TrainingConfig, layout: Parallel, rank: int, head: Head) -> Part:
    stage = stage_of(config, layout, rank)
    attention = config.kernels.choose(
        config.architecture, is_gpu=True, has_transformer_engine=False
    )
    activation = config.kernels.choose_activation(is_gpu=True)
    return Part(config.architecture, layout, stage, head, config.precision, attention, activation)


def _training(config: TrainingConfig, kind: str, rank: int) -> RankReport:
    """Report on a rank of `sft`, `reward` or `dpo`: one model."""
    part = _part(config, config.parallel, rank, config.models["model"].head)
    kept = held(part, config.data_parallel_size, is_trained=True, lora=config.lora)
    tokens = tokens_of_batch(config)
    phases = {}
    if config.needs_reference:
        phases["reference"] = _phase(kept.total, forward_activations(part, tokens))
    under_way = micro_batches_under_way(config, config.parallel, rank)
    work = training_activations(
        part, tokens, under_way, trains_head=config.lora is None, lora=config.lora
    )
    phases["step"] = _phase(kept.total, work)
    return RankReport(kind, {"model": kept}, phases)


def _episode(config: OnPolicyConfig, kind: str, rank: int, gpu_memory_gib: float) -> RankReport:
    """Report on a rank of `rlhf`, `online-dpo` or `grpo`: several models, which take turns."""
    models = {
        name: held(
            _part(config, role.parallel, rank, role.head),
            config.copies_of(role.parallel),
            is_trained=role.is_trained,
            lora=config.lora if role.is_trained else None,
        )
        for name, role in config.models.items()
    }
    work = {name: _work(config, name, rank) for name in models}
    share = int(config.rollout.gpu_memory_utilization * gpu_memory_gib * GIB)
    resident = 0 if config.offload else sum(each.total for each in models.values())
    asleep = 0 if config.rollout.sleep else share
    phases = {"start": _phase(sum(map(_at_start, models.values(), [config] * len(models))), 0)}
    phases["sampling"] = _phase(resident, 0, share)
    phases["push"] = _phase(
        resident or models["policy"].total,
        push_work(_part(config, config.parallel, rank, "lm")),
        share,
    )
    for role, model in models.items():
        phases[role] = _phase(resident or model.total, work[role], asleep)
    return RankReport(kind, models, phases, waiting(config, models))


def _work(config: OnPolicyConfig, name: str, rank: int) -> int:
    """Count the bytes that a model's work takes at most beyond what it keeps."""
    role = config.models[name]
    part = _part(config, role.parallel, rank, role.head)
    share = -(-config.samples_per_step // config.copies_of(role.parallel))
    count = min(config.experience.score_batch_size, share)
    length = config.longest_answer - (name != "reward")
    scoring = forward_activations(part, _answers(config, count, length))
    if not role.is_trained:
        return scoring
    learning = training_activations(
        part,
        tokens_of_batch(config),
        micro_batches_under_way(config, role.parallel, rank),
        trains_head=name != "policy" or config.lora is None,
    )
    # Without its adapters the policy is the reference.
    is_reference = name == "policy" and config.needs_reference and config.lora is not None
    return max(learning, scoring) if is_reference else learning


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
