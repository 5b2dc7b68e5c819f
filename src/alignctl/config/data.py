"""The sections of a run's configuration that say what is learned from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from typing_extensions import override

from alignctl.config.numbers import Fraction, Positive, Several
from alignctl.config.sections import FilePath, Section

Template = Annotated[str, Field(min_length=1)]
"""How a row becomes text: auto, none, tokenizer, hh, or the name of a chat template."""

Truncation = Literal["keep_response", "left", "right", "drop"]
"""What goes when a row is too long: its context's start, its start, its end, or all."""

Packing = Literal["none", "step", "all"]
"""Which documents may share a sequence: none, those of an optimizer step, or all of a split."""

Select = Literal["firstk", "topk", "random"]
"""Which answers of a row with more than may be taken: the first, the best, or any."""


def _distinct(value: Any) -> Any:
    """Refuse a path that is spelt in two ways, of which Pydantic would keep one in silence."""
    spellings: dict[Path, Any] = {}
    for name in value if isinstance(value, Mapping) else ():
        path = Path(name) if isinstance(name, str) else name
        if (before := spellings.setdefault(path, name)) != name:
            raise ValueError(f"data.blend names {path} twice: as {before} and as {name}")
    return value


class Inputs(Section):
    """Where the data is."""

    train: FilePath | None = None
    """File (.jsonl, .jsonl.zst, .json, .parquet, .arrow) or folder of training rows, or a name on
    the Hugging Face hub (ORG/NAME:CONFIG); of pretrain: an indexed dataset (the NAME of NAME.bin
    and NAME.idx), or a folder of them."""

    blend: Annotated[dict[FilePath, Positive] | None, BeforeValidator(_distinct)] = None
    """Several of these with their weights, in the place of `train`: the share of all training
    sequences that is taken from each, over the sum of the weights. A pass over rows has as many as
    there are; of some it has several copies then, and others come in later passes."""

    validation: FilePath | None = None
    """The same of what is held out; null: of rows the validation files of training folders, if any;
    of indexed datasets what `split` says."""

    @property
    def name(self) -> str:
        """What messages call the training data."""
        return str(self.train) if self.blend is None else "data.blend"

    @property
    def weights(self) -> dict[Path, float]:
        """Paths of the training data with their weights, in the order in which they are read.

        That is not the order in which a blend was written down, on which nothing depends.
        """
        if self.blend is not None:
            return dict(sorted(self.blend.items()))
        return {} if self.train is None else {self.train: 1.0}

    def problems(self) -> list[str]:
        """List what contradicts itself, one line each."""
        if self.blend is None:
            return []
        if self.train is not None:
            return [
                f"both of data.train {self.train} and data.blend set: give one (the other is null)"
            ]
        return [] if self.blend else ["data.blend is empty: name what to learn from, or set null"]


class Rows(Inputs):
    """What is learned from, and how a row becomes tokens."""

    validation_fraction: Fraction = 0.0
    """Share of the training rows held out, always the same ones, when there is no such file."""

    template: Template = "auto"
    """How a row becomes text: auto keeps a text that the row has, and writes chats by the
    tokenizer's chat template, or in HH's form if it has none; tokenizer, hh: always like this;
    none: only rows that have a text; another word: always by the tokenizer's chat template of this
    name."""

    @override
    def problems(self) -> list[str]:
        if self.train is None and self.blend is not None and len(self.blend) == 1:
            (path,) = self.blend
            return [f"data.blend names {path} alone, which is no blend: give --data {path}"]
        return super().problems()


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
