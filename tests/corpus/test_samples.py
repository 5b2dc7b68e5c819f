"""The sequences of a run are those of Megatron-Core's own builder, and nothing is lost or twice."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignctl.corpus.samples import Part, PretrainData, Recipe, longest_continuation, write
from alignctl.data import order
from alignctl.data.batch import TokenBatch
from alignctl.errors import UserError
from tests import tiny

SEQ_LENGTH, SAMPLES = 32, 40


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two datasets, of 200 and of 60 documents."""
    folder = tmp_path_factory.mktemp("corpora")
    rng = np.random.default_rng(1)
    documents = [
        [*rng.integers(4, 260, int(length)).tolist(), 2] for length in rng.integers(1, 50, 60)
    ]
    return tiny.write_corpus(folder / "a"), tiny.write_corpus(folder / "b", documents)


def recipe(*parts: tuple[Path, float], **changes: Any) -> Recipe:
    shares = tuple(Part(prefix=str(prefix), weight=weight) for prefix, weight in parts)
    usual = Recipe(
        train=shares,
        validation=(),
        split="90,10,0",
        seq_length=SEQ_LENGTH,
        seed=7,
        num_samples=SAMPLES,
        epoch_samples=100,
        vocab_size=tiny.VOCABULARY,
        eod=2,
        cross_document_attention=True,
    )
    return usual.model_copy(update=changes)


def made(folder: Path, recipe: Recipe) -> PretrainData:
    folder.mkdir()
    write(recipe, folder)
    return PretrainData.open(folder)


def texts(split: Any, count: int) -> list[list[int]]:
    """Sequences with the target of their last token."""
    batches = [split.batch([number]) for number in range(count)]
    return [[*batch.tokens.tolist(), int(batch.targets[-1])] for batch in batches]


def built_by_megatron(
    prefixes: Sequence[Path], weights: list[float] | None, sizes: list[int], split: str
) -> list[Any]:
    """What Megatron-LM's own training would read."""
    from megatron.core.datasets.blended_megatron_dataset_builder import (
        BlendedMegatronDatasetBuilder,
    )
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    class Tokenizer:
        vocab_size, eod = tiny.VOCABULARY, 2
        unique_identifiers: ClassVar[dict[str, str]] = {}

    config = GPTDatasetConfig(
        random_seed=7,
        sequence_length=SEQ_LENGTH,
        blend=([str(prefix) for prefix in prefixes], weights),
        split=split,
        tokenizer=Tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    return list(BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build())


def megatrons(dataset: Any, count: int) -> list[list[int]]:
    samples = [dataset[number] for number in range(count)]
    return [torch.cat([each["tokens"], each["labels"][-1:]]).tolist() for each in samples]


def test_one_dataset_is_read_as_megatron_reads_it(
    corpora: tuple[Path, Path], tmp_path: Path
) -> None:
    data = made(tmp_path / "data", recipe((corpora[0], 1.0)))
    train, validation, _ = built_by_megatron(corpora[:1], None, [SAMPLES, 5, 0], "90,10,0")
    assert texts(data.train, SAMPLES) == megatrons(train, SAMPLES)
    assert data.validation is not None
    held_out = texts(data.validation, data.validation.num_sequences)
    assert all(text in held_out for text in megatrons(validation, 5))


def test_a_blend_is_drawn_as_megatron_draws_it(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    data = made(tmp_path / "data", recipe((corpora[0], 3.0), (corpora[1], 1.0), split="1,0,0"))
    train, *_ = built_by_megatron(corpora, [3.0, 1.0], [SAMPLES, 0, 0], "1,0,0")
    assert texts(data.train, SAMPLES) == megatrons(train, SAMPLES)
    assert data.validation is None


def test_a_run_that_goes_on_reads_the_same_index(
    corpora: tuple[Path, Path], tmp_path: Path
) -> None:
    before = made(tmp_path / "data", recipe((corpora[0], 3.0), (corpora[1], 1.0)))
    stamps = {file: file.stat().st_mtime_ns for file in (tmp_path / "data").rglob("*.npy")}
    again = PretrainData.open(tmp_path / "data")
    assert texts(again.train, SAMPLES) == texts(before.train, SAMPLES)
    assert stamps
    assert stamps == {file: file.stat().st_mtime_ns for file in stamps}


@settings(max_examples=20, deadline=None)
@given(
    shares=st.lists(st.floats(0.3, 3.0), min_size=1, max_size=2), num_samples=st.integers(9, 400)
)
def test_a_longer_run_begins_with_the_same_sequences_as_long_as_its_passes_are_as_many(
    corpora: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
    shares: list[float],
    num_samples: int,
) -> None:
    """Up to there all are the same, and one sequence further none of Megatron's orders is."""
    parts = list(zip(corpora, shares, strict=False))
    folder = tmp_path_factory.mktemp("longer")
    short = recipe(*parts, split="1,0,0", num_samples=num_samples)
    longest = longest_continuation(short, num_samples + 1000)
    assert num_samples <= longest < num_samples + 1000
    assert longest_continuation(short, longest) == longest

    def begin(name: str, total: int) -> list[list[int]]:
        made_anew = made(folder / name, short.model_copy(update={"num_samples": total}))
        return texts(made_anew.train, num_samples)

    read = begin("short", num_samples)
    assert begin("longest", longest) == read
    assert begin("too long", longest + 1) != read


@settings(max_examples=25, deadline=None)
@given(
    weights=st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=6),
    num_samples=st.integers(1, 200),
)
def test_no_dataset_of_a_blend_runs_out_whatever_the_weights(
    corpora: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
    weights: list[float],
    num_samples: int,
) -> None:
    """Each gives its share to within a sequence, and every place of the blend can be read."""
    parts = [(corpora[number % 2], weight) for number, weight in enumerate(weights)]
    folder = tmp_path_factory.mktemp("blend") / "data"
    data = made(folder, recipe(*parts, split="1,0,0", num_samples=num_samples))
    drawn = np.bincount(data.train.dataset.dataset_index, minlength=len(weights))
    assert len(data.train.dataset) == num_samples
    assert np.abs(drawn - num_samples * np.asarray(weights) / sum(weights)).max() <= len(weights)
    assert data.train.batch([num_samples - 1]).num_targets == SEQ_LENGTH


def test_the_held_out_tokens_are_all_there_once_and_none_is_trained_on(tmp_path: Path) -> None:
    """Each token is a number of its own; the first of all is no target."""
    ends = np.cumsum([0, *([7, 13, 5] * 10)])
    documents = [range(start, end) for start, end in itertools.pairwise(ends)]
    prefix = tiny.write_corpus(tmp_path / "c", documents)
    data = made(tmp_path / "data", recipe((prefix, 1.0), split="60,20,20", num_samples=20))
    assert data.validation is not None
    held_out = [
        int(target)
        for number in range(data.validation.num_sequences)
        for target in data.validation.batch([number]).targets
    ]
    expected = {token for document in documents[18:24] for token in document}
    assert len(held_out) == len(set(held_out)) == len(expected) - 1
    assert set(held_out) < expected
    trained = {token for text in texts(data.train, 20) for token in text}
    assert trained <= {token for document in documents[:18] for token in document}


def test_datasets_of_their_own_are_validated_with_whole(
    corpora: tuple[Path, Path], tmp_path: Path
) -> None:
    part = Part(prefix=str(corpora[1]), weight=1.0)
    data = made(tmp_path / "data", recipe((corpora[0], 1.0), split="1,0,0", validation=(part,)))
    assert data.validation is not None
    batches = [data.validation.batch([n]) for n in range(data.validation.num_sequences)]
    from alignctl.corpus.datasets import Indexed

    assert sum(batch.num_targets for batch in batches) == Indexed.open(corpora[1]).tokens - 1


def test_documents_are_cut_after_their_ends(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    """Every target but those that follow an EOD is learned, from its own document alone."""
    whole = made(tmp_path / "whole", recipe((corpora[0], 1.0)))
    split = replace(whole.train, cut_after=2)
    num_boundaries = 0
    for number in range(SAMPLES):
        (text,) = texts(replace(whole.train, dataset=_Only(whole.train.dataset, number)), 1)
        cut: TokenBatch = split.batch([number])
        pairs = [(a, b) for a, b in itertools.pairwise(text) if a != 2]
        assert list(zip(cut.tokens.tolist(), cut.targets.tolist(), strict=True)) == pairs
        starts = set(cut.pieces.boundaries[1:-1])
        assert starts == {
            place for place in range(1, len(cut.tokens)) if cut.targets[place - 1] == 2
        }
        num_boundaries += len(starts)
    assert num_boundaries > SAMPLES / 2


class _Only:
    """A dataset that begins at a place of another one."""

    def __init__(self, dataset: Any, number: int) -> None:
        self.dataset, self.number = dataset, number

    def __getitem__(self, number: int) -> Any:
        return self.dataset[self.number + number]


@pytest.mark.parametrize("dp_size", [1, 2, 4])
def test_a_step_takes_the_next_samples_whatever_the_layout(
    corpora: tuple[Path, Path], tmp_path: Path, dp_size: int
) -> None:
    data = made(tmp_path / "data", recipe((corpora[0], 1.0)))
    for step in (0, 3):
        rows = [
            row
            for rank in range(dp_size)
            for batch in order.train_batches(
                data.train,
                step=step,
                seed=1,
                global_batch_size=8,
                micro_batch_size=2,
                dp_rank=rank,
                dp_size=dp_size,
            )
            for row in batch.rows
        ]
        assert sorted(rows) == list(range(8 * step, 8 * step + 8))


def test_a_sequence_knows_where_it_came_from(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    data = made(tmp_path / "data", recipe((corpora[0], 1.0), (corpora[1], 1.0)))
    for number in range(10):
        prefix, _, words = data.where(number).partition(", from document ")
        from alignctl.corpus.datasets import Indexed

        found = Indexed.open(Path(prefix)).data.document(int(words.removesuffix(" on")))
        (text,) = texts(replace(data.train, dataset=_Only(data.train.dataset, number)), 1)
        joined = " ".join(map(str, found.tolist()))
        assert any(joined.endswith(" ".join(map(str, text[:end]))) for end in range(1, 33)) or (
            " ".join(map(str, text)) in joined
        )


def test_an_index_of_objects_is_refused_before_megatron_would_unpickle_it(
    corpora: tuple[Path, Path], tmp_path: Path
) -> None:
    made(tmp_path / "data", recipe((corpora[0], 1.0)))
    file = next((tmp_path / "data").rglob("*shuffle_index.npy"))
    np.save(file, np.asarray([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="not a readable array of numbers"):
        PretrainData.open(tmp_path / "data")
    with pytest.raises(UserError, match="not a folder of prepared data"):
        PretrainData.open(tmp_path)
