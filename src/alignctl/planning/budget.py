"""Micro batches by a budget of tokens, planned as micro batches of a number of answers."""

from dataclasses import dataclass
from typing import TypeVar

from alignctl.config.on_policy_run import OnPolicyConfig
from alignctl.config.sections import Section
from alignctl.data.batch import is_worth_sharing

Run = TypeVar("Run", bound=OnPolicyConfig)
Part = TypeVar("Part", bound=Section)


def counted(config: Run) -> tuple[Run, ...]:
    """Make runs whose micro batches are counted, one of which has the largest that may come.

    A budget takes most memory in one of two ways. Of the longest prompts, each with all its
    answers, keys and values are copied for each answer; of prompts of a single token, every other
    token is learned and has logits. Answers are as long as they can be, but for the little that
    makes whole ones fill the budget.

    Returns:
        The run itself, where its micro batches are counted already.
    """
    if config.batch.micro_batch_tokens is None:
        return (config,)
    return tuple(
        _as_counted(config, _shape(config, config.batch.micro_batch_tokens, prompt))
        for prompt in (config.data.max_prompt_length, 1)
    )


@dataclass(frozen=True)
class _Shape:
    """A micro batch that fills the budget.

    Attributes:
        groups: How many groups.
        together: Answers of each.
        prompt: Tokens of a prompt.
        answer: Tokens of an answer.
        samples: Answers to one prompt in the episode.
    """

    groups: int
    together: int
    prompt: int
    answer: int
    samples: int


def _shape(config: OnPolicyConfig, budget: int, prompt: int) -> _Shape:
    answer, samples = config.rollout.max_new_tokens, config.experience.samples
    together = config.answers_kept_together
    if together == 1:  # whole groups, or as many answers of one as just fill the budget
        together = next(
            (n for n in range(1, samples) if _tokens(config, prompt, answer, n) >= budget), samples
        )
        samples = together
    available = -(-config.experience.prompts * config.experience.samples // samples)
    groups = min(
        -(-budget // _tokens(config, prompt, answer, together)),
        -(-available // config.data_parallel_size),
    )
    scale = min(1.0, budget / groups / _tokens(config, prompt, answer, together))
    return _Shape(
        groups, together, max(1, round(prompt * scale)), max(1, int(answer * scale)), samples
    )


def _tokens(config: OnPolicyConfig, prompt: int, answer: int, together: int) -> int:
    """Count what is computed for answers to one prompt; of pairs, the last tokens too."""
    length = prompt + answer - (config.answers_kept_together == 1)
    is_shared = config.batch.share_prompts and is_worth_sharing(prompt - 1, [length] * together)
    return together * length - (together - 1) * (prompt - 1) * is_shared


def _as_counted(config: Run, shape: _Shape) -> Run:
    """Make a run of such micro batches; it has as many answers, and takes them in as many steps."""
    budget, dp = config.batch.micro_batch_tokens, config.data_parallel_size
    assert budget is not None
    prompts = -(-config.samples_per_step // shape.samples)
    size, rows = shape.groups, config.batch.global_batch_size
    if shape.together == shape.samples and config.answers_compared == 1:
        size *= shape.together
        if config.units_per_step == rows:
            rows = prompts * shape.samples
        else:  # an update takes answers to any prompts, of which none is shared
            size = max(1, budget // (shape.prompt + shape.answer - 1))
    most = max(
        number
        for number in range(1, shape.samples + 1)
        if shape.samples % number == 0
        and (number == 1 or _tokens(config, shape.prompt, shape.answer, number) <= budget)
    )
    scored = most * max(1, budget // _tokens(config, shape.prompt, shape.answer, most))
    return config.model_copy(
        update={
            "batch": _changed(
                config.batch,
                micro_batch_tokens=None,
                micro_batch_size=min(size, -(-rows // dp)),
                global_batch_size=rows,
            ),
            "experience": _changed(
                config.experience,
                samples=shape.samples,
                prompts=prompts,
                score_batch_size=scored,
            ),
            "data": _changed(config.data, max_prompt_length=shape.prompt),
            "rollout": _changed(config.rollout, max_new_tokens=shape.answer),
        }
    )


def _changed(section: Part, **values: int | None) -> Part:
    return section.model_copy(update=values)
