"""The kinds of data that stages read: prepared for the ranks, described and shown to the user."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.text import Text

from alignctl import console
from alignctl.config.on_policy_run import OnPolicyConfig
from alignctl.config.pretrain import PretrainConfig
from alignctl.config.run import PreferenceConfig, SFTConfig, TrainingConfig
from alignctl.corpus import preparation as corpora
from alignctl.corpus.inspection import describe_lengths
from alignctl.corpus.samples import PretrainData
from alignctl.data import preferences, preview, prompts, sft
from alignctl.data.batch import Document
from alignctl.data.preference_store import PreferenceData
from alignctl.data.prompt_store import PromptData
from alignctl.data.store import SFTData
from alignctl.data.tokenizer import Tokenizer
from alignctl.errors import UserError
from alignctl.reporting.preview import plain, render, visible
from alignctl.reporting.progress.rows import RowsProgress
from alignctl.rewards.rules import RULES
from alignctl.stages.shared import course
from alignctl.stages.shared.stage import Rows


@dataclass(frozen=True)
class Kind:
    """What is done with data of one kind.

    Attributes:
        prepare: Of a configuration, with a tokenizer, below a folder: makes what the ranks read,
            and returns its folder.
        describe: Of a configuration and that folder: what became of the rows, and how far a run
            goes with them; refuses rows that the run could do nothing with.
        show: Of that folder: how long the rows are, and so many of them as they are learned.
        holds_out: Of that folder: whether there is something to validate on.
        what: How messages name such data.
        check_longer: Of a configuration, and the folder that was prepared for a run as it was:
            refuses to make that longer where its steps so far would have read something else.
        goes_on: Of two prepared folders: whether a run that read the first may read the second.
    """

    prepare: Callable[[Any, Tokenizer, Path], Path]
    describe: Callable[[Any, Path], Iterator[str]]
    show: Callable[[Path, Tokenizer, int], Iterator[str | Text]]
    holds_out: Callable[[Path], bool]
    what: str = "{train}: the rows"
    check_longer: Callable[[Any, Path], None] = lambda config, before: None
    goes_on: Callable[[Path, Path], bool] = lambda before, after: before.name == after.name


# ---- documents ----


def _prepare_documents(config: SFTConfig, tokenizer: Tokenizer, folder: Path) -> Path:
    progress = RowsProgress("tokenising")
    return sft.prepare(config.data, config.batch.seq_length, tokenizer, folder, progress)


def _describe_documents(config: SFTConfig, folder: Path) -> Iterator[str]:
    summary = SFTData.open(folder).summary
    yield summary.describe()
    sizes = [(source.sequences, source.documents) for source in summary.sources]
    yield from course.describe_blend(config.data.weights, sizes)
    yield str(course.of_documents(config, summary))


def _show_documents(folder: Path, tokenizer: Tokenizer, samples: int) -> Iterator[str | Text]:
    data = SFTData.open(folder)
    yield from describe_lengths(np.diff(data.train.offsets))
    for number in range(min(samples, data.summary.train.documents)):
        yield f"\n{data.where(number)}: what is learned stands in {_marks()}"
        yield _shown(data.train.document(number), tokenizer)


# ---- preferences ----


def _prepare_preferences(config: PreferenceConfig, tokenizer: Tokenizer, folder: Path) -> Path:
    progress = RowsProgress("tokenising")
    return preferences.prepare(config.data, config.batch.seq_length, tokenizer, folder, progress)


def _describe_preferences(config: PreferenceConfig, folder: Path) -> Iterator[str]:
    summary = PreferenceData.open(folder).summary
    yield summary.describe()
    sizes = [(source.groups, source.groups) for source in summary.sources]
    yield from course.describe_blend(config.data.weights, sizes)
    yield str(course.of_preferences(config, summary))
    yield from course.describe_shared_answers(config.batch, summary)


def _show_preferences(folder: Path, tokenizer: Tokenizer, samples: int) -> Iterator[str | Text]:
    data = PreferenceData.open(folder)
    yield from describe_lengths(np.diff(data.train.offsets))
    for group in range(min(samples, data.summary.train.groups)):
        start, end = data.train.bounds[group : group + 2]
        for number in data.train.members[start:end].tolist():
            score = data.train.scores[number]
            yield f"\n{data.where(number)}: score {score:g}, the answer stands in {_marks()}"
            yield _shown(data.train.document(number), tokenizer)


# ---- prompts ----


def _prepare_prompts(config: OnPolicyConfig, tokenizer: Tokenizer, folder: Path) -> Path:
    progress, keeps_rows = RowsProgress("tokenising"), bool(config.score.functions)
    return prompts.prepare(config.data, tokenizer, folder, RULES, progress, keeps_rows=keeps_rows)


def _describe_prompts(config: OnPolicyConfig, folder: Path) -> Iterator[str]:
    data = PromptData.open(folder)
    yield data.summary.describe()
    sizes = [(size, size) for size in data.summary.sources]
    yield from course.describe_blend(config.data.weights, sizes)
    _check_rules(config, data)
    yield str(course.of_prompts(config, data.summary))
    yield from course.describe_shared_prompts(config, data.summary)


def _show_prompts(folder: Path, tokenizer: Tokenizer, samples: int) -> Iterator[str | Text]:
    data = PromptData.open(folder)
    yield from describe_lengths(np.diff(data.prompts.offsets))
    for number in data.train[:samples].tolist():
        yield f"\n{data.where(number)}: {len(data.prompts[number])} tokens"
        yield visible(tokenizer.decode(data.prompts[number].tolist()))
        if data.answers[number] is not None:
            yield f"reference answer: {data.answers[number]} ({data.eval_funcs[number]})"


def _check_rules(config: OnPolicyConfig, data: PromptData) -> None:
    """Refuse prompts that nothing could score.

    Raises:
        UserError: Rows without an answer and a rule, where the rule alone scores; or no row with
            them, where it takes part beside others.
    """
    # A row that names a rule has an answer: others were refused.
    unjudged = [place for place, rule in enumerate(data.eval_funcs) if rule is None]
    total, source = len(data.eval_funcs), config.score.source
    if source == "sparse_only" and config.score.functions and len(unjudged) == total:
        raise UserError(
            f"{config.data.name}: score.source is sparse_only, and no row has answer and "
            "eval_func for a rule",
            "leave it to your own rewards: score.source=functions",
        )
    if source == "sparse_only" and unjudged and not config.score.functions:
        raise UserError(
            f"{data.where(unjudged[0])}: this is one of {len(unjudged):,} prompts (of {total:,}) "
            "without answer or eval_func, and score.source is sparse_only: nothing could score it",
            "give all rows prompt, answer and eval_func; or score by a model: "
            "score.source=dense_only --reward-load DIR, or by functions of your own: "
            "score.source=functions",
        )
    if source == "merge" and len(unjudged) == total:
        raise UserError(
            f"{config.data.name}: score.source is merge, and no row has answer and eval_func for "
            "a rule",
            "leave it to the reward model: score.source=dense_only",
        )
    if config.score.workers > (os.cpu_count() or 1):
        console.say(f"score.workers {config.score.workers} are more than this machine's cores")


# ---- indexed datasets ----


def _prepare_datasets(config: PretrainConfig, tokenizer: Tokenizer, folder: Path) -> Path:
    warnings.filterwarnings("ignore", module=r"megatron\.")  # of libraries it can do without
    return corpora.prepare(config, tokenizer, folder)


def _say_nothing(*_: Any) -> Iterator[str]:
    """Yield nothing: `prepare inspect` shows datasets, of which tokens alone are counted."""
    return iter(())


KINDS: dict[Rows, Kind] = {
    "documents": Kind(
        _prepare_documents,
        _describe_documents,
        _show_documents,
        lambda folder: SFTData.open(folder).validation is not None,
    ),
    "preferences": Kind(
        _prepare_preferences,
        _describe_preferences,
        _show_preferences,
        lambda folder: PreferenceData.open(folder).validation is not None,
    ),
    "prompts": Kind(
        _prepare_prompts,
        _describe_prompts,
        _show_prompts,
        lambda folder: PromptData.open(folder).summary.validation > 0,
    ),
    "datasets": Kind(
        _prepare_datasets,
        _say_nothing,
        _say_nothing,
        lambda folder: PretrainData.open(folder).validation is not None,
        "the datasets",
        corpora.check_longer,
        corpora.goes_on,
    ),
}


def require_held_out(config: TrainingConfig, kind: Kind, folder: Path) -> None:
    """Refuse to watch what is never measured, as nothing is held out.

    Raises:
        UserError: There is nothing to validate on, and a validation is to decide something.
    """
    knobs = {
        "checkpoint.keep_best": config.checkpoint.keep_best,
        "train.patience": config.train.patience,
    }
    for name, value in knobs.items():
        if value is not None and not kind.holds_out(folder):
            raise UserError(
                f"{name} {value}: nothing is held out of {config.data.name}, so nothing is "
                "measured that could tell which checkpoint is better",
                "give --validation-data FILE, or a share of the rows: data.validation_fraction=0.1",
            )


def _marks() -> str:
    return "colour" if sys.stdout.isatty() else "[[ ]]"


def _shown(document: Document, tokenizer: Tokenizer) -> str | Text:
    parts = preview.pieces(document, tokenizer)
    return render(parts) if sys.stdout.isatty() else plain(parts)
