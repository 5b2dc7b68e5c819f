"""How far a run goes: what a step takes and learns from, and how often it takes each row.

Two runs whose batches are counted differently (in padded rows, in packed sequences, in answers) are
alike where both figures are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignctl.config.on_policy_run import OnPolicyConfig
from alignctl.config.run import SFTConfig, TrainingConfig
from alignctl.config.sections import AnswersBatch
from alignctl.data.order import share_out
from alignctl.data.preference_store import PreferenceSummary
from alignctl.data.prompt_store import PromptSummary
from alignctl.data.store import Summary


@dataclass(frozen=True)
class Course:
    """A run with its data.

    Attributes:
        steps: Optimizer steps; of the on-policy stages episodes.
        rows_per_step: Rows that a step takes, on average.
        rows: Rows to train on.
        learned: What an optimizer step learns from, on average: tokens, or answers.
        of_what: That, in words.
    """

    steps: int
    rows_per_step: float
    rows: int
    learned: float
    of_what: str

    @property
    def passes(self) -> float:
        """Number of times that the run takes each row, on average."""
        return self.steps * self.rows_per_step / self.rows

    def __str__(self) -> str:
        """Write one line for the user."""
        rows = f"{self.rows_per_step:,.1f}".removesuffix(".0")
        return (
            f"course: {self.steps:,} steps of {rows} rows, {self.passes:.2f} passes over "
            f"{self.rows:,}; {self.learned:,.0f} {self.of_what}"
        )


def of_documents(config: SFTConfig, summary: Summary) -> Course:
    """Describe `sft`, whose steps count rows, or full sequences of them."""
    train, size = summary.train, config.batch.global_batch_size
    return Course(
        config.total_steps(train.sequences),
        size * _average(config, summary, lambda split: split.documents),
        train.documents,
        size * _average(config, summary, lambda split: split.supervised_tokens),
        "tokens learned in each",
    )


def of_preferences(config: TrainingConfig, summary: PreferenceSummary) -> Course:
    """Describe `reward` or `dpo`, whose steps count prompts; each has a row."""
    train, size = summary.train, config.batch.global_batch_size
    is_scored = config.models["model"].head != "lm"
    learned = _average(
        config, summary, lambda split: split.documents if is_scored else split.answer_tokens
    )
    return Course(
        config.total_steps(train.groups),
        size,
        train.groups,
        size * learned,
        "answers scored in each" if is_scored else "tokens learned in each",
    )


def of_prompts(config: OnPolicyConfig, summary: PromptSummary) -> Course:
    """Describe a stage that learns from its own answers, whose lengths nobody knows yet."""
    updates = config.updates_per_step
    return Course(
        config.num_episodes(summary.train),
        config.experience.prompts,
        summary.train,
        config.experience.epochs * config.samples_per_step / updates,
        f"answers learned from in each of {updates:,} updates a step",
    )


def _average(
    config: TrainingConfig, summary: Summary | PreferenceSummary, count: Callable[[Any], int]
) -> float:
    """Average what a sequence has over those that a pass takes; sources of a blend by weight."""
    if not summary.sources:
        return count(summary.train) / summary.train.sequences
    sizes = [source.sequences for source in summary.sources]
    shares = share_out(sizes, config.data.weights.values())
    taken = [
        count(source) * share.taken / share.size
        for source, share in zip(summary.sources, shares, strict=True)
    ]
    return sum(taken) / sum(sizes)


def describe_blend(
    weights: Mapping[Path, float], sizes: Sequence[tuple[int, int]]
) -> Iterator[str]:
    """Say which share of a pass each source gives, and how often that takes its rows.

    Args:
        weights: The weights of the sources by their paths.
        sizes: Sequences and rows of each source of a blend; without one there is nothing to say.
    """
    shares = share_out([size for size, _ in sizes], weights.values())
    total = sum(share.taken for share in shares)
    parts = [
        f"{path} {100 * share.taken / total:.1f} % ({share.taken / share.size:.2f} times {rows:,} "
        f"row{'s' * (rows > 1)})"
        for path, share, (_, rows) in zip(weights, shares, sizes, strict=False)
    ]
    if parts:
        yield f"blend: a pass takes {', '.join(parts)}"


def describe_shared_answers(batch: AnswersBatch, summary: PreferenceSummary) -> Iterator[str]:
    """Say how many tokens are spared where what answers begin with is computed once.

    Nothing is said where they have nothing in common, or an earlier version has not counted it.
    """
    train = summary.train
    if train.shared_tokens:
        part = f"{100 * train.shared_tokens / train.tokens:.0f} % of {train.tokens:,} tokens"
        yield _describe_shared(batch, part)


def describe_shared_prompts(config: OnPolicyConfig, summary: PromptSummary) -> Iterator[str]:
    """Say the same of prompts whose answers nobody knows yet, if they have several."""
    again = config.experience.prompts * (config.experience.samples - 1)
    # The last token of a prompt predicts the first one of each answer.
    spared = again * (summary.train_tokens / summary.train - 1)
    if spared:
        yield _describe_shared(config.batch, f"about {spared:,.0f} tokens of a step")


def _describe_shared(batch: AnswersBatch, part: str) -> str:
    if batch.share_prompts:
        return f"prompts: computed once for all their answers, which spares {part}"
    return f"prompts: computed for each answer; batch.share_prompts=true would spare {part}"
