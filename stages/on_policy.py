"""What on-policy stages share: the checks of all models before a start, and a rank's work."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from alignctl import console
from alignctl.config.on_policy_run import OnPolicyConfig, RLHFConfig
from alignctl.data.tokenizer import load_tokenizer
from alignctl.errors import UserError
from alignctl.launch.attempt import Attempt
from alignctl.launch.nodes import Nodes
from alignctl.launch.run_folder import RunFolder
from alignctl.stages import course, launcher, training

if TYPE_CHECKING:
    from alignctl.checkpoints.source import Source
    from alignctl.data.prompt_store import PromptData
    from alignctl.on_policy.loop import Learner
    from alignctl.on_policy.models import Models


def launch(config: OnPolicyConfig, *, nodes: Nodes, dry_run: bool, resume: bool) -> int:
    """Checks and prepares everything, then runs the job: see `launcher.launch`."""

    def prepare_data(source: "Source", attempt: Attempt) -> None:
        from alignctl.data.prompt_store import PromptData
        from alignctl.data.prompts import prepare
        from alignctl.rewards.rules import RULES

        folder = launcher.prepare_rows(
            lambda settings, _, tokenizer, out_dir, progress: prepare(
                settings, tokenizer, out_dir, RULES, progress
            ),
            config,
            source,
            attempt,
        )
        data = PromptData.open(folder)
        console.say(data.summary.describe())
        console.say(str(course.of_prompts(config, data.summary)))
        check_rules(config, data)

    return launcher.launch(
        config, prepare_data, nodes=nodes, dry_run=dry_run, resume=resume, beside=check
    )


def check(config: OnPolicyConfig) -> "dict[str, Source]":
    """Looks at the models beside the policy and at the sampler, without loading a weight.

    Returns:
        The models, by their keys in the configuration; the value model also where it starts from
        the reward model.

    Raises:
        UserError: vLLM is missing; a model is missing, is of the wrong role, cannot be cut as the
            policy is, or reads other tokens; end tokens are named that the policy has not.
    """
    from alignctl.rollouts.library import check_vllm

    if warning := check_vllm(config.model):
        console.say(f"warning: {warning}")
    _check_ends(config)
    found = {}
    if config.needs_reward_model:
        found["reward_load"] = _check_reward(config)
    if isinstance(config, RLHFConfig):
        from alignctl.on_policy.sources import open_value

        found["value.load"] = open_value(config)
        if config.value.load is not None:
            _check_fits(config, found["value.load"], "value.load")
        _check_adapters(config, found["value.load"])
    return found


def _check_ends(config: OnPolicyConfig) -> None:
    """What the files beside the policy say about its answers: the same as the ranks will read."""
    from alignctl.checkpoints import generation_config
    from alignctl.checkpoints.preflight import open_model

    policy = open_model(config)
    eos_id = load_tokenizer(policy.tokenizer_folder(config.tokenizer)).eos_id
    vocab_size = policy.model.vocab_size
    ends = generation_config.end_token_ids(policy.companions, eos_id, vocab_size=vocab_size)
    if len(ends) > 1:
        shown = ", ".join(map(str, ends[:8])) + (", ..." if len(ends) > 8 else "")
        console.say(f"answers end at {len(ends)} tokens: {shown}")
    penalty = config.rollout.repetition_penalty
    if warning := generation_config.unheeded(policy.companions, repetition_penalty=penalty):
        console.say(f"warning: {warning}")


def _check_reward(config: OnPolicyConfig) -> "Source":
    from alignctl.checkpoints.source import require_reward
    from alignctl.on_policy.sources import open_reward

    source = open_reward(config)
    require_reward(source, f"--reward-load {source.path}")
    console.say(f"reward: {source.description}")
    _check_fits(config, source, "--reward-load")
    return source


def _check_adapters(config: RLHFConfig, source: "Source") -> None:
    """The value model gets adapters as the policy does, if that gets any."""
    from alignctl.models.adapters import describe

    if config.lora is None:
        return
    if problems := config.lora.problems(source.model):
        raise UserError(
            f"the value model, {source.path}, cannot have the policy's adapters: "
            f"{'; '.join(problems)}",
            "give both models adapters that fit, or leave lora out",
        )
    console.say(f"value model: {describe(source.model, config.lora)}")


def _check_fits(config: OnPolicyConfig, source: "Source", name: str) -> None:
    """A model must be cuttable as the policy is, and read the same tokens."""
    if problems := source.model.layout_problems(config.parallel.tp, config.parallel.pp):
        raise UserError(
            f"{name} {source.path} cannot be laid out as the policy is: {'; '.join(problems)}",
            "choose parallel.tp and parallel.pp that divide both models",
        )
    if source.model.family == "llama2":
        longest = source.model.max_position_embeddings
        if config.batch.seq_length > longest:
            raise UserError(
                f"{name} {source.path}: its max_position_embeddings {longest} is less than "
                f"batch.seq_length {config.batch.seq_length}",
                f"set batch.seq_length to {longest} or less",
            )
    if source.companions is None:
        return
    from alignctl.checkpoints.preflight import open_model

    policy = load_tokenizer(open_model(config).tokenizer_folder(config.tokenizer))
    other = load_tokenizer(source.companions)
    if policy.vocabulary != other.vocabulary:
        raise UserError(
            f"{name} {source.path}: its tokenizer has {len(other.vocabulary):,} tokens and is not "
            f"that of the policy, which has {len(policy.vocabulary):,}: its scores would be noise",
            "use a reward model that was trained from the same base, with the same tokenizer",
        )


def check_rules(config: OnPolicyConfig, data: "PromptData") -> None:
    """Refuses prompts that nothing could score.

    Raises:
        UserError: Rows without an answer and a rule, where the rule alone scores; or no row with
            them, where it takes part.
    """
    # A row that names a rule has an answer: others were refused.
    unjudged = [place for place, rule in enumerate(data.eval_funcs) if rule is None]
    total = len(data.eval_funcs)
    if config.score.source == "sparse_only" and unjudged:
        raise UserError(
            f"{data.where(unjudged[0])}: this is one of {len(unjudged):,} prompts (of {total:,}) "
            "without answer or eval_func, and score.source is sparse_only: nothing could score it",
            "give all rows prompt, answer and eval_func; or score by a model: "
            "score.source=dense_only --reward-load DIR",
        )
    if config.score.source == "merge" and len(unjudged) == total:
        raise UserError(
            f"{config.data.train}: score.source is merge, and no row has answer and eval_func for "
            "a rule",
            "leave it to the reward model: score.source=dense_only",
        )
    if config.score.workers > (os.cpu_count() or 1):
        console.say(f"score.workers {config.score.workers} are more than this machine's cores")


def run(
    config: OnPolicyConfig,
    folder: RunFolder,
    make: "Callable[[Any, Models, PromptData], Learner]",
) -> None:
    """One rank's work: load or resume, episodes, validate, save.

    Args:
        config: The run.
        folder: Its folder.
        make: Makes the learner.
    """
    import torch.distributed as dist

    from alignctl.data.prompt_store import PromptData
    from alignctl.on_policy import models
    from alignctl.on_policy.loop import Loop
    from alignctl.on_policy.scoring import Judge, Scorer
    from alignctl.rewards.workers import RuleWorkers

    config = training.initialize(config, folder)
    data = PromptData.open(launcher.prepared_data(folder))
    loaded = models.load(config, folder)
    tokenizer = load_tokenizer(loaded.checkpoints.source.tokenizer_folder(config.tokenizer))
    has_rules = any(rule is not None for rule in data.eval_funcs)
    workers = RuleWorkers(config.score.workers, config.score.timeout_seconds) if has_rules else None
    with workers or nullcontext():
        judge = Judge(tokenizer, workers) if workers else None
        scorer = Scorer(loaded.models, data, judge)
        learner = make(config, loaded.models, data)
        Loop(config, folder, loaded, data, tokenizer, scorer, learner).run()
    loaded.models.rollout.close()
    dist.barrier()
    dist.destroy_process_group()
