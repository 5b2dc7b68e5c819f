"""Sequences of equal length from indexed datasets, drawn by Megatron-Core's dataset classes.

Documents are shuffled, laid end to end, cut into sequences, and these shuffled again, all by
`GPTDataset`; `BlendedDataset` mixes several by weight. Their indices are a function of the seed and
of how many sequences the run takes; those of `GPTDataset` are computed once, before a rank starts,
and kept in the run folder. The sequences of step N are those at its place in them, so a resumed run
needs no state but its step number.
"""

import logging
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from alignctl.corpus.datasets import Indexed
from alignctl.data.batch import Document, TokenBatch
from alignctl.errors import UserError

RECIPE = "recipe.json"
_INDEX = "index"
_SURPLUS = 1.005
"""Megatron-LM's: a blend draws from each dataset by its weight to within a sequence, and a dataset
must not run out before the blend does."""
_APART = 0.80
"""Megatron-Core's: the last pass is shuffled by itself if less than this share of it is taken."""
_SHOWN = 64
"""Tokens of the sample that is shown."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(_Frozen):
    """A dataset in a blend."""

    prefix: str
    weight: float
    """In any unit: its share is this over the sum."""


class Recipe(_Frozen):
    """All that decides the sequences of a run, besides the datasets themselves."""

    train: tuple[Part, ...]
    validation: tuple[Part, ...]
    """Datasets of their own for validation; none: `split` cuts those of training."""
    split: str
    seq_length: int
    seed: int
    num_samples: int
    """Training sequences of the whole run."""
    epoch_samples: int
    """Training sequences of one pass over the data."""
    vocab_size: int
    """Highest token id of the tokenizer plus one."""
    eod: int
    """Token that ends documents."""
    cross_document_attention: bool


@dataclass(frozen=True, eq=False)
class SampleSplit:
    """Sequences of one split.

    Attributes:
        dataset: Megatron's, `GPTDataset` or `BlendedDataset`.
        num_sequences: Sequences of one pass over the data.
        seq_length: Input tokens of a sequence; the last one of a validation may have fewer.
        cut_after: Token after which attention begins anew; None: never inside a sequence.
    """

    dataset: Any
    num_sequences: int
    seq_length: int
    cut_after: int | None

    def taken(self, *, global_batch_size: int, seed: int, step: int) -> NDArray[np.int64]:
        """Choose the sequences of one step: the next ones, as Megatron has put them into an order.

        So the seed has had its effect already.
        """
        return np.arange(step * global_batch_size, (step + 1) * global_batch_size)

    def lengths(self, sequences: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the input tokens of some sequences, in the shape of their numbers."""
        return np.full_like(sequences, self.seq_length)

    def batch(self, sequences: Iterable[int]) -> TokenBatch:
        """Build one micro batch of whole sequences, every token learned; of none: a filler."""
        return TokenBatch.from_documents(
            [piece for number in sequences for piece in self._pieces(number)]
        )

    def first(self) -> Document:
        """Return the beginning of the first sequence, to be shown."""
        tokens = self._tokens(0)[:_SHOWN]
        return Document(tokens, np.ones(len(tokens), np.bool_), 0)

    def _pieces(self, number: int) -> Iterator[Document]:
        """Yield a sequence, cut after each end of a document where that is wanted.

        What follows the end of a document cannot be predicted from it, so the end is a target and
        never an input; a piece of one token has nothing to predict.
        """
        tokens = self._tokens(number)
        is_end = tokens == (-1 if self.cut_after is None else self.cut_after)
        for piece in np.split(tokens, np.flatnonzero(is_end) + 1):
            if len(piece) > 1:
                yield Document(piece, np.ones(len(piece), np.bool_), number)

    def _tokens(self, number: int) -> NDArray[np.int32]:
        """Return the inputs of a sequence and the target of the last one `[L + 1]`."""
        sample = self.dataset[number]
        length = int(sample["loss_mask"].sum())  # the last sequence of a pass is padded
        tokens, targets = sample["tokens"][:length].numpy(), sample["labels"][:length].numpy()
        whole: NDArray[np.int32] = np.append(tokens, targets[-1:]).astype(np.int32)
        return whole


@dataclass(frozen=True, eq=False)
class PretrainData:
    """A folder that `write` wrote.

    Attributes:
        recipe: What it was made by.
        train: Training sequences.
        validation: Held-out sequences, or None.
    """

    recipe: Recipe
    train: SampleSplit
    validation: SampleSplit | None

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map the indices of a prepared folder and the datasets into memory.

        Raises:
            UserError: The folder is none, or an index is not one of numbers.
        """
        file = folder / RECIPE
        if not file.is_file():
            raise UserError(f"{folder}: not a folder of prepared data (no {RECIPE})")
        _refuse_objects(folder / _INDEX)
        return cls._build(Recipe.model_validate_json(file.read_bytes()), folder / _INDEX)

    @classmethod
    def _build(cls, recipe: Recipe, index: Path) -> Self:
        train = _dataset(recipe, "train", index)
        held_out = _dataset(recipe, "valid", index)
        cut_after = None if recipe.cross_document_attention else recipe.eod

        def split(dataset: Any, num_sequences: int) -> SampleSplit:
            return SampleSplit(dataset, num_sequences, recipe.seq_length, cut_after)

        return cls(
            recipe,
            split(train, recipe.epoch_samples),
            None if held_out is None else split(held_out, len(held_out)),
        )

    def where(self, sequence: int) -> str:
        """Say from which dataset, and which first document, a training sequence came."""
        dataset = self.train.dataset
        if hasattr(dataset, "datasets"):
            sequence, dataset = (
                int(dataset.dataset_sample_index[sequence]),
                dataset.datasets[int(dataset.dataset_index[sequence])],
            )
        first = dataset.sample_index[dataset.shuffle_index[sequence]][0]
        return f"{dataset.dataset_path}, from document {int(dataset.document_index[first])} on"


def write(recipe: Recipe, folder: Path) -> None:
    """Compute the indices of a recipe; write them and the recipe into an empty folder."""
    PretrainData._build(recipe, folder / _INDEX)
    (folder / RECIPE).write_text(recipe.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_recipe(folder: Path) -> Recipe:
    """Read what a prepared folder was made by."""
    return Recipe.model_validate_json((folder / RECIPE).read_bytes())


def longest_continuation(recipe: Recipe, num_samples: int) -> int:
    """Return how many sequences a longer run may take, so that it begins with those of this one.

    Megatron shuffles the documents of all passes over a dataset together, those of the last one
    sometimes apart. So the order is that of the number of passes, however much of the last is
    taken; with another number it is another order from the first sequence on.

    Args:
        recipe: Of the run so far.
        num_samples: As many as are wanted, at least as many as the run has.
    """
    split = "1,0,0" if recipe.validation else recipe.split
    counts = [tokens_of(Indexed.open(Path(each.prefix)), split, "train") for each in recipe.train]
    found = [(n, each.weight) for n, each in zip(counts, recipe.train, strict=True) if n > 1]
    shares = _normalise([weight for _, weight in found])

    def orders(total: int) -> list[tuple[int, bool]]:
        sizes = _sizes(total, shares)
        return [
            _passes(size, n, recipe.seq_length) for size, (n, _) in zip(sizes, found, strict=True)
        ]

    longer, known = range(recipe.num_samples, num_samples + 1), orders(recipe.num_samples)
    return longer[bisect_right(longer, False, key=lambda total: orders(total) != known) - 1]


def _passes(num_samples: int, tokens: int, seq_length: int) -> tuple[int, bool]:
    """Count the passes over a dataset, and tell whether the last is shuffled by itself."""
    passes = max(1, math.ceil((num_samples * seq_length + 1) / tokens))
    before_the_last = ((passes - 1) * tokens - 1) // seq_length
    of_a_pass = (tokens - 1) // seq_length
    return passes, passes > 1 and num_samples - before_the_last < int(_APART * of_a_pass)


def tokens_of(dataset: Indexed, split: str, which: Literal["train", "valid"]) -> int:
    """Count the tokens that a split gives to training or to validation.

    Args:
        dataset: The dataset.
        split: Three shares, as `98,2,0`.
        which: For what.
    """
    documents = _share(len(dataset.lengths), split, which)
    return int(dataset.lengths[documents].sum(dtype=np.int64))


def _share(documents: int, split: str, which: Literal["train", "valid"]) -> slice:
    # Megatron-Core imports torch. The launcher calls this too, and imports torch only when it
    # needs it.
    from megatron.core.datasets.blended_megatron_dataset_config import (
        convert_split_vector_to_split_matrix,
        parse_and_normalize_split,
    )

    matrix = convert_split_vector_to_split_matrix(parse_and_normalize_split(split))
    bounds = matrix[("train", "valid").index(which)]
    begin, end = (round(bound * float(documents)) for bound in bounds or (0.0, 0.0))
    return slice(begin, end)


# ---- Megatron's classes ----


class _Tokenizer:
    """What Megatron's datasets ask of a tokenizer. It has no `pad`: nothing is masked by its id."""

    def __init__(self, recipe: Recipe) -> None:
        self.vocab_size, self.eod = recipe.vocab_size, recipe.eod
        self.unique_identifiers = {"vocab_size": self.vocab_size, "eod": self.eod}


def _dataset(recipe: Recipe, which: Literal["train", "valid"], index: Path) -> Any:
    """Build Megatron's dataset of a split, or None; its indices are read or written."""
    from megatron.core.datasets.blended_dataset import BlendedDataset
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.utils import Split

    is_train = which == "train"
    parts = recipe.train if is_train or not recipe.validation else recipe.validation
    split = recipe.split
    if recipe.validation:
        split = "1,0,0" if is_train else "0,1,0"
    config = GPTDatasetConfig(
        random_seed=recipe.seed,
        sequence_length=recipe.seq_length,
        blend=([part.prefix for part in parts], None),
        split=split,
        path_to_cache=str(index),
        tokenizer=_Tokenizer(recipe),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        drop_last_partial_validation_sequence=False,
    )
    found = []
    for part in parts:
        low = GPTDataset.build_low_level_dataset(part.prefix, config)
        documents = _share(GPTDataset.numel_low_level_dataset(low), split, which)
        if int(low.sequence_lengths[documents].sum()) > 1:
            found.append((part, low, np.arange(documents.start, documents.stop, dtype=np.int32)))
    weights = _normalise([part.weight for part, *_ in found])
    sizes = _sizes(recipe.num_samples, weights) if is_train else [None] * len(found)
    datasets = [
        GPTDataset(low, part.prefix, indices, size, Split[which], config)
        for (part, low, indices), size in zip(found, sizes, strict=True)
    ]
    for dataset in datasets:
        # Megatron-Core 0.16.1 keeps the mask of the sequence that is read first for all others, and
        # that may be the padded one.
        dataset.masks_and_position_ids_are_cacheable = False
    if len(datasets) <= 1:
        return datasets[0] if datasets else None
    # To keep its index, Megatron's blend needs a process group; to compute it takes a moment.
    logging.getLogger("megatron.core.datasets.blended_dataset").setLevel(logging.ERROR)
    config = replace(config, path_to_cache=None)
    if is_train:
        return BlendedDataset(datasets, weights, recipe.num_samples, config)
    return BlendedDataset(datasets, [len(each) for each in datasets], None, config)


def _normalise(weights: Sequence[float]) -> list[float]:
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def _sizes(num_samples: int, shares: Sequence[float]) -> list[int]:
    """Compute how many sequences each dataset has to hold: for a single one just what is taken."""
    if len(shares) == 1:
        return [num_samples]
    return [math.ceil(math.ceil(num_samples * share) * _SURPLUS) for share in shares]


def _refuse_objects(index: Path) -> None:
    """Refuse arrays of objects, which Megatron would unpickle."""
    for file in index.glob("*.npy"):
        try:
            np.load(file, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise UserError(
                f"{file}: not a readable array of numbers: {error}",
                "remove the folder it is in: it is made again",
            ) from error
