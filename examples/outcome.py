"""What the demo has done and brought, and the tables that say so."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from arithmetic import Addition
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

LEAST_GAIN = 0.1
"""Of held-out token accuracy, for "clearly better"."""
LEAST_ACCURACY = 0.9
"""On held-out pairs, for "tells right from wrong"."""
NUM_SHOWN = 3


@dataclass(frozen=True)
class Done:
    """A stage that has run: a line of the table at the end."""

    model: str
    name: str
    what: str
    seconds: float
    output: Path


@dataclass(frozen=True)
class Verdict:
    """What a model could do before and after."""

    model: str
    before: dict[str, float]
    after: dict[str, float]
    asked: list[Addition]
    replies_before: list[str]
    replies_after: list[str]

    @property
    def is_better(self) -> bool:
        """True if held-out rows are predicted clearly better than at the start."""
        return (
            self.after["loss"] < self.before["loss"]
            and self.after["token_accuracy"] >= self.before["token_accuracy"] + LEAST_GAIN
        )


@dataclass(frozen=True)
class PairVerdict:
    """The share of held-out pairs that a stage has in the right order, before and after."""

    model: str
    stage: str
    before: float
    after: float

    @property
    def is_good(self) -> bool:
        """True if right answers are told from wrong ones."""
        return self.after >= LEAST_ACCURACY


@dataclass(frozen=True)
class PolicyVerdict:
    """What a stage that learns from its own answers has brought, on prompts that were held out.

    Attributes:
        model: The preset.
        stage: The stage.
        accuracy: Share of right answers before and after.
        score: Mean score before and after.
        kl: Nats per answer from the reference at the end, where there is one.
    """

    model: str
    stage: str
    accuracy: tuple[float, float]
    score: tuple[float, float]
    kl: float | None

    @property
    def is_good(self) -> bool:
        """True if more answers are right than before."""
        return self.accuracy[1] > self.accuracy[0]


def count_right(asked: list[Addition], texts: list[str]) -> int:
    """Count the replies that end with the right number."""
    return sum(each.is_answered_by(text) for each, text in zip(asked, texts, strict=True))


def show(
    done: list[Done],
    verdicts: list[Verdict],
    pair_verdicts: list[PairVerdict],
    policy_verdicts: list[PolicyVerdict],
) -> None:
    """Print what was done, what it improved, and a few answers."""
    console = Console()
    console.width = max(console.width, 100)  # in a log file too, where nobody said how wide it is
    tables = [table_of_stages(done), table_of_gains(verdicts)]
    tables += [table_of_pairs(pair_verdicts)] if pair_verdicts else []
    tables += [table_of_policies(policy_verdicts)] if policy_verdicts else []
    console.print("", *tables, table_of_answers(verdicts))


def table_of_stages(done: list[Done]) -> Table:
    """Make the table of what each stage did, how long it took, and where its output is."""
    table = Table("model", "stage", "what it did", title="What was done", box=SIMPLE_HEAD)
    table.add_column("seconds", justify="right")
    table.add_column("output", overflow="fold")
    for each, following in zip(done, [*done[1:], None], strict=True):
        is_last = following is None or following.model != each.model
        seconds = f"{each.seconds:.1f}"
        table.add_row(
            each.model, each.name, each.what, seconds, str(each.output), end_section=is_last
        )
    table.add_row("", "", "together", f"{sum(each.seconds for each in done):.1f}", "")
    return table


def table_of_gains(verdicts: list[Verdict]) -> Table:
    """Make the table of loss, accuracy and right answers, before and after."""
    table = Table("model", title="On sums that were held out", box=SIMPLE_HEAD)
    for name in ("loss", "token accuracy", "right answers"):
        table.add_column(name, justify="right")
    for verdict in verdicts:
        old, new = verdict.before, verdict.after
        table.add_row(
            verdict.model,
            f"{old['loss']:.3f} -> {new['loss']:.3f}",
            f"{old['token_accuracy']:.1%} -> {new['token_accuracy']:.1%}",
            f"{count_right(verdict.asked, verdict.replies_before)} -> "
            f"{count_right(verdict.asked, verdict.replies_after)} of {len(verdict.asked)}",
        )
    return table


def table_of_pairs(verdicts: list[PairVerdict]) -> Table:
    """Make the table of how many pairs are in the right order, before and after."""
    table = Table("model", "stage", title="On pairs that were held out", box=SIMPLE_HEAD)
    table.add_column("accuracy", justify="right")
    for each in verdicts:
        table.add_row(each.model, each.stage, f"{each.before:.1%} -> {each.after:.1%}")
    return table


def table_of_policies(verdicts: list[PolicyVerdict]) -> Table:
    """Make the table of right answers, scores and distance, before and after on-policy stages."""
    title = "On prompts that were held out, by learning from own answers"
    table = Table("model", "stage", title=title, box=SIMPLE_HEAD)
    for name in ("right answers", "score", "KL to the start"):
        table.add_column(name, justify="right")
    for each in verdicts:
        table.add_row(
            each.model,
            each.stage,
            f"{each.accuracy[0]:.1%} -> {each.accuracy[1]:.1%}",
            f"{each.score[0]:.2f} -> {each.score[1]:.2f}",
            "-" if each.kl is None else f"{each.kl:.2f} nats",
        )
    return table


def table_of_answers(verdicts: list[Verdict]) -> Table:
    """Make the table of a few replies of the trained models."""
    table = Table("model", "question", "answer", "", title="Some answers", box=SIMPLE_HEAD)
    for verdict in verdicts:
        pairs = zip(verdict.asked, verdict.replies_after, strict=True)
        for asked, text in islice(pairs, NUM_SHOWN):
            mark = "right" if asked.is_answered_by(text) else "wrong"
            table.add_row(verdict.model, asked.question(), text.strip(), mark)
    return table
