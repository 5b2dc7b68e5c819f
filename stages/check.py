"""What a stage would do with a file of rows: its own preparation, into a folder that is not kept.

    alignctl prepare check sft data/train.jsonl --preset llama2-7b --tokenizer models/llama2-7b

No model is opened and no process started.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console
from rich.text import Text

from alignctl import console
from alignctl.config.on_policy_run import OnPolicyConfig
from alignctl.config.run import SFTConfig, TrainingConfig
from alignctl.corpus.inspection import describe_lengths
from alignctl.data import preferences, preview, prompts, sft
from alignctl.data.batch import Document
from alignctl.data.preference_store import PreferenceData
from alignctl.data.prompt_store import PromptData
from alignctl.data.store import SFTData
from alignctl.data.tokenizer import Tokenizer, check_fits, load_tokenizer
from alignctl.errors import UserError
from alignctl.reporting.preview import plain, render, visible
from alignctl.reporting.rows_progress import RowsProgress
from alignctl.rewards.rules import RULES
from alignctl.stages import course
from alignctl.stages.on_policy import check_rules


def run(config: TrainingConfig, samples: int) -> None:
    """Prints what `report` says."""
    for line in report(config, samples):
        if isinstance(line, Text):
            Console(file=sys.stdout).print(line, soft_wrap=True)
        else:
            console.emit(line)


def report(config: TrainingConfig, samples: int) -> Iterator[str | Text]:
    """Says what becomes of the rows, how far the run goes with them, how long they are, and some.

    Args:
        config: The stage's configuration; its model, engine and layout are not used.
        samples: Rows to show.

    Raises:
        UserError: For whatever the stage would refuse in the rows, or in the tokenizer.
    """
    if config.tokenizer is None:
        raise UserError("--tokenizer is missing: the folder of the model's tokenizer")
    tokenizer = load_tokenizer(config.tokenizer)
    check_fits(tokenizer, config.architecture.vocab_size)
    with TemporaryDirectory(prefix="alignctl-check-") as scratch:
        if isinstance(config, OnPolicyConfig):
            yield from _prompts(config, tokenizer, Path(scratch), samples)
        elif isinstance(config, SFTConfig):
            yield from _documents(config, tokenizer, Path(scratch), samples)
        else:
            yield from _preferences(config, tokenizer, Path(scratch), samples)


def _documents(
    config: SFTConfig, tokenizer: Tokenizer, scratch: Path, samples: int
) -> Iterator[str | Text]:
    progress = RowsProgress("tokenising")
    folder = sft.prepare(config.data, config.batch.seq_length, tokenizer, scratch, progress)
    data = SFTData.open(folder)
    yield data.summary.describe()
    yield str(course.of_documents(config, data.summary))
    yield from describe_lengths(np.diff(data.train.offsets))
    for number in range(min(samples, data.summary.train.documents)):
        yield f"\n{data.where(number)}: what is learned stands in {_marks()}"
        yield _shown(data.train.document(number), tokenizer)


def _preferences(
    config: TrainingConfig, tokenizer: Tokenizer, scratch: Path, samples: int
) -> Iterator[str | Text]:
    progress = RowsProgress("tokenising")
    settings, length = config.data, config.batch.seq_length
    folder = preferences.prepare(settings, length, tokenizer, scratch, progress)  # type: ignore[arg-type]  # of reward and dpo
    data = PreferenceData.open(folder)
    yield data.summary.describe()
    yield str(course.of_preferences(config, data.summary))
    yield from describe_lengths(np.diff(data.train.offsets))
    for group in range(min(samples, data.summary.train.groups)):
        start, end = data.train.bounds[group : group + 2]
        for number in data.train.members[start:end].tolist():
            score = data.train.scores[number]
            yield f"\n{data.where(number)}: score {score:g}, the answer stands in {_marks()}"
            yield _shown(data.train.document(number), tokenizer)


def _prompts(
    config: OnPolicyConfig, tokenizer: Tokenizer, scratch: Path, samples: int
) -> Iterator[str | Text]:
    folder = prompts.prepare(config.data, tokenizer, scratch, RULES, RowsProgress("tokenising"))
    data = PromptData.open(folder)
    yield data.summary.describe()
    check_rules(config, data)
    yield str(course.of_prompts(config, data.summary))
    yield from describe_lengths(np.diff(data.prompts.offsets))
    for number in data.train[:samples].tolist():
        yield f"\n{data.where(number)}: {len(data.prompts[number])} tokens"
        yield visible(tokenizer.decode(data.prompts[number].tolist()))
        if data.answers[number] is not None:
            yield f"reference answer: {data.answers[number]} ({data.eval_funcs[number]})"


def _marks() -> str:
    return "colour" if sys.stdout.isatty() else "[[ ]]"


def _shown(document: Document, tokenizer: Tokenizer) -> str | Text:
    parts = preview.pieces(document, tokenizer)
    return render(parts) if sys.stdout.isatty() else plain(parts)
