"""What each name in a row of `metrics.jsonl` means; the writer of metrics refuses any other.

The page `docs/metrics.md` is made of it: `python -m alignctl.reporting.glossary > docs/metrics.md`.
"""

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache

from alignctl import console


@dataclass(frozen=True)
class Entry:
    """One name, or all names of one shape.

    Attributes:
        name: The name; `*` stands for any part.
        unit: What it is counted in; empty where it is a bare number.
        meaning: What it tells.
    """

    name: str
    unit: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """Names that belong together.

    Attributes:
        title: Heading of the page.
        about: Which rows have them.
        entries: In the order in which a reader wants them.
    """

    title: str
    about: str
    entries: tuple[Entry, ...]


OTHER_KINDS = {
    "start": {"total": "steps of the whole run, when an attempt begins"},
    "checkpoint": {"path": "of the checkpoint that is complete now"},
    "note": {"text": "a remark for the reader"},
    "preview": {
        "pieces": "decoded tokens of a row, each with whether it is learned",
        "label": "which of several rows it is, such as the better answer",
    },
}
"""Rows that are no measurements, and what each adds to `kind`, `step` and `time`."""

SECTIONS = (
    Section(
        "All stages",
        "Rows of kind `train`.",
        (
            Entry(
                "loss",
                "",
                "what is minimised: nats per learned token in `sft` and `pretrain`, per prompt in "
                "`reward` and `dpo`; in the on-policy stages not to be compared between steps",
            ),
            Entry("grad_norm", "", "norm of the whole gradient before clipping"),
            Entry("loss_scale", "", "what losses are multiplied by; with `precision=fp16` alone"),
            Entry("skipped_steps", "steps", "left out so far, as fp16 could not hold the gradient"),
            Entry("tokens", "tokens", "input tokens of the step; on-policy: tokens of its answers"),
            Entry("computed_tokens", "tokens", "less where answers share a prompt"),
            Entry("tokens_per_second", "tokens/s", "`tokens` by the seconds of the step"),
            Entry(
                "mfu",
                "share",
                "of the GPUs' peak in bf16 that the models need, on known GPUs; on-policy: while "
                "answers are scored and learned from, without the sampler",
            ),
            Entry("seconds_*", "s", "of the step, by phase: the first rank's clock"),
        ),
    ),
    Section(
        "`pretrain`, `sft`, `reward`, `dpo`",
        "Rows of kind `train`.",
        (
            Entry("lr", "", "learning rate of this step"),
            Entry("peak_memory_gib", "GiB", "largest so far of rank 0"),
        ),
    ),
    Section(
        "`pretrain` and `sft`",
        "Rows of kind `train` and `validation`; `loss` is in both.",
        (
            Entry("token_accuracy", "share", "learned tokens that the model found likeliest"),
            Entry("perplexity", "", "e to the loss; `pretrain` alone"),
        ),
    ),
    Section(
        "`reward`",
        "Rows of kind `train` and `validation`; `loss` is in both.",
        (
            Entry(
                "accuracy",
                "share",
                "pairs in which the better answer has the higher score, or in `dpo` gained more; "
                "on-policy: answers that a rule found right",
            ),
            Entry("accuracy_*_to_*", "share", "of the pairs whose scores are so far apart"),
            Entry("accuracy_above_*", "share", "of the pairs whose scores are further apart"),
            Entry("margin", "", "score of the better answer less that of the worse, on average"),
            Entry("score_mean", "", "mean score of all answers"),
            Entry("score_std", "", "standard deviation of scores; of answers, on-policy too"),
            Entry(
                "length_correlation",
                "",
                "of scores and lengths, -1 to 1: far from 0, the model scores length",
            ),
        ),
    ),
    Section(
        "`dpo`",
        "Rows of kind `train` and `validation`; `online-dpo` has them in `train`, with "
        "`pair_accuracy` for `accuracy`.",
        (
            Entry("pair_accuracy", "share", "pairs whose better answer gained more; 0.5 is chance"),
            Entry("chosen_reward", "", "beta x (log-prob. less the reference's), better answer"),
            Entry("rejected_reward", "", "the same of the worse answer; `margin` is the rest"),
            Entry("chosen_logprob", "nats", "of the whole better answer, by the policy"),
            Entry("rejected_logprob", "nats", "of the whole worse answer"),
            Entry("preference_loss", "", "part of the loss that prefers; with `loss.nll`"),
            Entry("nll_loss", "", "part of the loss that imitates the better answer"),
        ),
    ),
    Section(
        "On-policy: the answers",
        "`rlhf`, `online-dpo`, `grpo`. Rows of kind `train` are about the answers that are learned "
        "from, those of kind `validation` about greedy answers to held-out prompts.",
        (
            Entry("score", "", "mean of what answers are worth, by all that scores them"),
            Entry("model_score", "", "mean score by the reward model, as it gave it"),
            Entry("rule_*", "share", "answers on which a rule found this, where rows name rules"),
            Entry("penalty", "", "mean of what length and repetitions cost, 0 or less"),
            Entry("length", "tokens", "of an answer, on average"),
            Entry("finished", "share", "answers that end by themselves; the others were cut"),
            Entry(
                "reward_*",
                "",
                "of one reward by its name: mean, `_std`, `_share` of the variance of the sum, "
                "`_failed` and `_retried` answers, and what it measured itself",
            ),
        ),
    ),
    Section(
        "On-policy: the episode",
        "`rlhf`, `online-dpo`, `grpo`. Rows of kind `train`.",
        (
            Entry("kl", "nats", "from the reference, per answer, before the updates"),
            Entry("requests_retried", "requests", "that failed in the sampler, and were repeated"),
            Entry("requests_failed", "requests", "that failed again, and are not learned from"),
            Entry("prompts_asked", "prompts", "with `experience.max_refills`"),
            Entry("prompts_constant", "prompts", "left out: all their answers are worth the same"),
            Entry("constant_groups", "share", "prompts whose answers are worth the same; `grpo`"),
            Entry("pairs", "pairs", "that are learned from; `online-dpo`"),
            Entry("prompts_without_pair", "prompts", "of equal answers; `online-dpo`"),
            Entry("memory_gib_*", "GiB", "largest of the first rank by phase; on a CPU so far"),
        ),
    ),
    Section(
        "On-policy: sampler and trainer",
        "Rows of kind `train`: how far both agree on the tokens that were sampled. What grows here "
        "is a fault or rounding, not learning.",
        (
            Entry("mismatch_mean_difference", "nats", "per token; `trust.max_difference` ends it"),
            Entry("mismatch_max_difference", "nats", "of the worst token"),
            Entry("mismatch_mean_ratio", "", "trainer's probability by the sampler's; should be 1"),
            Entry("mismatch_kl", "nats", "per token, never negative"),
            Entry("mismatch_kl_k1", "nats", "the same by another estimate, of either sign"),
            Entry("mismatch_effective_share", "share", "effective sample size of all tokens"),
            Entry("mismatch_masked", "share", "tokens left out by `trust.correction`"),
        ),
    ),
    Section(
        "On-policy: updates of the policy",
        "Rows of kind `train`; the first nine are of `rlhf` and `grpo`. Means over the updates of "
        "the episode.",
        (
            Entry("policy_loss", "", "without penalty and bonus"),
            Entry("ratio", "", "new probability by old; about 1"),
            Entry("approx_kl", "nats", "per token, from the policy that sampled; never negative"),
            Entry("approx_kl_k1", "nats", "the same by another estimate, of either sign"),
            Entry("clip_fraction_low", "share", "tokens whose ratio was clipped from below"),
            Entry("clip_fraction_high", "share", "from above"),
            Entry("dual_clip_fraction", "share", "clipped by `loss.dual_clip`"),
            Entry("token_kl", "nats", "from the reference, per token; never negative"),
            Entry("token_kl_k1", "nats", "the same by another estimate, of either sign"),
            Entry("entropy", "nats", "per token: near 0, the policy says one thing only"),
            Entry("updates", "steps", "optimizer steps; fewer than planned with `loss.max_kl`"),
            Entry("trained_tokens", "tokens", "input tokens of all updates"),
            Entry("micro_batches", "batches", "of a rank, in all updates"),
        ),
    ),
    Section(
        "`rlhf`",
        "Rows of kind `train`.",
        (
            Entry("reward", "", "what is maximised: score less KL penalty, per answer"),
            Entry("kl_coef", "", "weight of the KL penalty"),
            Entry("value_loss", "", "half the squared error of the value model"),
            Entry(
                "value_explained_variance", "", "1: it knows the returns; 0 or less: it does not"
            ),
            Entry("value_value", "", "mean value that it gives"),
            Entry("value_return", "", "mean of what came"),
            Entry("value_clip_fraction", "share", "tokens whose error was clipped"),
            Entry("value_grad_norm", "", "as `grad_norm`"),
            Entry("value_loss_scale", "", "as `loss_scale`"),
            Entry("value_skipped_steps", "steps", "as `skipped_steps`"),
        ),
    ),
)


_ABOUT = """Written by `python -m alignctl.reporting.glossary`; a run refuses to write any other
name, so the list is complete. Every line of a run's `metrics.jsonl` is a JSON object with `kind`,
`step` (optimizer steps done; on-policy: episodes) and `time` (seconds since 1970). What is not
finite is one of the strings "nan", "inf" and "-inf". TensorBoard has the same names behind `train/`
and `validation/`. `*` stands for any part of a name."""


@cache
def is_known(name: str) -> bool:
    """Tell whether the glossary has a measurement's name, alone or by a pattern."""
    return any(fnmatchcase(name, entry.name) for part in SECTIONS for entry in part.entries)


def check(kind: str, names: Iterable[str]) -> None:
    """Assert that the glossary has every name of a row, which has to be explained before.

    Args:
        kind: Of the row.
        names: All but `kind`, `step` and `time`.
    """
    others = OTHER_KINDS.get(kind)
    for name in names:
        assert is_known(name) if others is None else name in others, (
            f"the glossary lacks {name!r} of {kind} rows: add it to "
            "src/alignctl/reporting/glossary.py, with its unit and its meaning, then run "
            "python -m alignctl.reporting.glossary > docs/metrics.md"
        )


def render() -> Iterator[str]:
    """Yield the lines of the page."""
    yield from ("# Metrics", "", *textwrap.wrap(_ABOUT, 100))
    for section in SECTIONS:
        yield from ("", f"## {section.title}", "")
        yield from (*textwrap.wrap(section.about, 100), "")
        yield from ("| name | unit | meaning |", "|---|---|---|")
        for entry in section.entries:
            yield f"| `{entry.name}` | {entry.unit} | {entry.meaning} |"
    yield from ("", "## Rows that measure nothing", "", "| kind | has | meaning |", "|---|---|---|")
    for kind, names in OTHER_KINDS.items():
        for name, meaning in names.items():
            yield f"| `{kind}` | `{name}` | {meaning} |"


if __name__ == "__main__":
    for line in render():
        console.emit(line)
