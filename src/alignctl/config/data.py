"""The sections of a run's configuration that say what is learned from."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from alignctl.config.numbers import Fraction, Several
from alignctl.config.sections import FilePath, Section

Template = Annotated[str, Field(min_length=1)]
"""How a row becomes text: auto, none, tokenizer, hh, or the name of a chat template."""

Truncation = Literal["keep_response", "left", "right", "drop"]
"""What goes when a row is too long: its context's start, its start, its end, or all."""

Packing = Literal["none", "step", "all"]
"""Which documents may share a sequence: none, those of an optimizer step, or all of a split."""

Select = Literal["firstk", "topk", "random"]
"""Which answers of a row with more than may be taken: the first, the best, or any."""


class Inputs(Section):
    """Where the data is."""

    train: FilePath | None = None
    """File (.jsonl, .jsonl.zst, .json, .parquet, .arrow) or folder of training rows, or a name on
    the Hugging Face hub (ORG/NAME:CONFIG); of pretrain: an indexed dataset (the NAME of NAME.bin
    and NAME.idx), or a folder of them."""

    validation: FilePath | None = None
    """The same of what is held out; null: of rows the validation file of a training folder, if any;
    of indexed datasets what `split` says."""


class Rows(Inputs):
    """What is learned from, and how a row becomes tokens."""

    validation_fraction: Fraction = 0.0
    """Share of the training rows held out, always the same ones, when there is no such file."""

    template: Template = "auto"
    """How a row becomes text: auto keeps a text that the row has, and writes chats by the
    tokenizer's chat template, or in HH's form if it has none; tokenizer, hh: always like this;
    none: only rows that have a text; another word: always by the tokenizer's chat template of this
    name."""


class Documents(Rows):
    """Rows whose answers are in the data."""

    truncation: Truncation = "keep_response"
    """What goes when a row exceeds seq_length: its context's start, its start, its end, or all."""


def _packing(value: Any) -> Any:
    """Translate true and false, the only values before `step` was added."""
    return {True: "all", False: "none"}[value] if isinstance(value, bool) else value


class Data(Documents):
    """What is learned from, and how rows become sequences."""

    packing: Annotated[Packing, BeforeValidator(_packing)] = "all"
    """Which rows share a sequence, without attention from one to another. step: those of an
    optimizer step, so batch.global_batch_size counts rows, whatever their lengths. all: any rows,
    packed beforehand, so it counts full sequences. none: each row is a sequence of its own."""


class Preferences(Documents):
    """Which answers are compared, and how they become tokens."""

    max_response: Several | None = None
    """Most answers taken of a row; null takes all. Every two of different score are a pair."""

    select: Select = "firstk"
    """Which answers of a row with more than max_response: the first, the best, or any."""


class ReferencedPreferences(Preferences):
    """Preferences with what the frozen reference model makes of them."""

    reference_cache: FilePath | None = None
    """Folder of the reference's log-probabilities, which runs from the same weights on the same
    rows share; null: .cache/reference beside the run folder."""
