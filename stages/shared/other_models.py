"""The models beside the policy of an on-policy run, and its sampler, looked at before a start."""

from alignctl import console
from alignctl.checkpoints import generation_config
from alignctl.checkpoints.preflight import open_model
from alignctl.checkpoints.source import Source, require_reward
from alignctl.config.on_policy_run import OnPolicyConfig
from alignctl.data.tokenizer import load_tokenizer
from alignctl.errors import UserError
from alignctl.models.adapters import describe
from alignctl.on_policy import sources
from alignctl.rollouts.library import check_vllm
from alignctl.stages.shared.own_rewards import check_functions


def open_others(config: OnPolicyConfig) -> dict[str, Source]:
    """Check the sampler and the models beside the policy, without loading a weight.

    Returns:
        The models, by their keys in the configuration; the value model also where it is made from
        the reward model.

    Raises:
        UserError: vLLM is missing; a model is missing, is of the wrong role, cannot be cut as the
            policy is, reads other tokens, or cannot have its adapters; end tokens are named that
            the policy has not; a file with a reward of one's own cannot be imported.
    """
    if warning := check_vllm(config.model):
        console.say(f"warning: {warning}")
    _check_ends(config)
    check_functions(config.score.functions)
    found = {}
    if "reward" in config.models:
        found["reward_load"] = _check_reward(config)
    if "value" in config.models:
        found["value.load"] = sources.open_value(config)
        if config.value_load is not None:
            _check_fits(config, found["value.load"], "value.load", "value")
        else:
            _check_layout(config, found["value.load"], "the value model", "value")
        _check_adapters(config, found["value.load"])
    return found


def _check_ends(config: OnPolicyConfig) -> None:
    """Say what the files beside the policy tell about its answers, as the ranks will read them."""
    policy = open_model(config)
    eos_id = load_tokenizer(policy.tokenizer_folder(config.tokenizer)).eos_id
    vocab_size = policy.model.vocab_size
    ends = generation_config.end_token_ids(policy.auxiliary, eos_id, vocab_size=vocab_size)
    if len(ends) > 1:
        shown = ", ".join(map(str, ends[:8])) + (", ..." if len(ends) > 8 else "")
        console.say(f"answers end at {len(ends)} tokens: {shown}")
    penalty = config.rollout.repetition_penalty
    if warning := generation_config.unheeded(policy.auxiliary, repetition_penalty=penalty):
        console.say(f"warning: {warning}")


def _check_reward(config: OnPolicyConfig) -> Source:
    """Check and return the reward model."""
    source = sources.open_reward(config)
    require_reward(source, f"--reward-load {source.path}")
    console.say(f"reward: {source.description}")
    _check_fits(config, source, "--reward-load", "reward")
    return source


def _check_adapters(config: OnPolicyConfig, source: Source) -> None:
    """Check that the value model can have adapters as the policy does, if that gets any."""
    if config.lora is None:
        return
    if problems := config.lora.problems(source.model):
        raise UserError(
            f"the value model, {source.path}, cannot have the policy's adapters: "
            f"{'; '.join(problems)}",
            "give both models adapters that fit, or leave lora out",
        )
    console.say(f"value model: {describe(source.model, config.lora)}")


def _check_layout(config: OnPolicyConfig, source: Source, name: str, role: str) -> None:
    """Check that a model can be cut as its role, or else as the policy is."""
    layout, key = config.models[role].parallel, config.layout_key(role)
    problems = source.model.layout_problems(layout.tp, layout.pp, prefix=f"{key}.")
    if not problems:
        return
    is_shared = key == "parallel"
    raise UserError(
        f"{name} {source.path} cannot be laid out as {'the policy is' if is_shared else key}: "
        f"{'; '.join(problems)}",
        f"choose {key}.tp and {key}.pp that divide {'both models' if is_shared else 'it'}"
        + (f", or give it a layout of its own: roles.{role}.parallel" if is_shared else ""),
    )


def _check_fits(config: OnPolicyConfig, source: Source, name: str, role: str) -> None:
    """Check that a model can be cut as it is to be, and reads the same tokens."""
    _check_layout(config, source, name, role)
    if source.model.family == "llama2":
        longest = source.model.max_position_embeddings
        if config.batch.seq_length > longest:
            raise UserError(
                f"{name} {source.path}: its max_position_embeddings {longest} is less than "
                f"batch.seq_length {config.batch.seq_length}",
                f"set batch.seq_length to {longest} or less",
            )
    if source.auxiliary is None:
        return
    policy = load_tokenizer(open_model(config).tokenizer_folder(config.tokenizer))
    other = load_tokenizer(source.auxiliary)
    if policy.vocabulary != other.vocabulary:
        raise UserError(
            f"{name} {source.path}: its tokenizer has {len(other.vocabulary):,} tokens and is not "
            f"that of the policy, which has {len(policy.vocabulary):,}: its scores would be noise",
            "use a reward model that was trained from the same base, with the same tokenizer",
        )
