"""Indexed datasets before a run: what a path means, and what is wrong with their files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from alignctl.corpus.datasets import Indexed, find
from alignctl.errors import UserError
from tests import tiny

DOCUMENTS = [[5, 6, 7, 2], [8, 2], [9, 10, 11, 12, 2]]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return tiny.write_corpus(tmp_path / "data" / "small.v1", DOCUMENTS)


def test_a_path_means_one_dataset_or_those_of_a_folder(corpus: Path) -> None:
    tiny.write_corpus(corpus.parent / "more", DOCUMENTS)
    names = (corpus, corpus.with_name("small.v1.idx"), corpus.with_name("small.v1.bin"))
    assert [each.prefix for path in names for each in find(path)] == [corpus] * 3
    assert [each.prefix.name for each in find(corpus.parent)] == ["more", "small.v1"]


def test_it_says_what_megatron_has_written(corpus: Path) -> None:
    found = Indexed.open(corpus)
    assert found.lengths.tolist() == [4, 2, 5]
    assert (found.tokens, found.num_bytes, found.manifest) == (11, 22, None)
    assert found.last_tokens(2).tolist() == [2, 2]


def test_every_id_is_compared_with_the_rows_of_the_model(corpus: Path) -> None:
    counted: list[int] = []
    Indexed.open(corpus).check_ids(13, counted.append)
    assert sum(counted) == 22
    with pytest.raises(UserError, match="token id 12 is beyond the 12 rows of the model's") as it:
        Indexed.open(corpus).check_ids(12)
    assert it.value.hint is not None
    assert it.value.hint.endswith("grow the vocabulary to 13 rows: extra_vocab_size")


def test_a_negative_id_is_refused(tmp_path: Path) -> None:
    found = Indexed.open(tiny.write_corpus(tmp_path / "odd", [[5, -1]], dtype="int32"))
    with pytest.raises(UserError, match="token id -1 is beyond"):
        found.check_ids(100)


def test_another_content_has_another_fingerprint(corpus: Path) -> None:
    before = Indexed.open(corpus).fingerprint()
    assert Indexed.open(corpus).fingerprint() == before
    tiny.write_corpus(corpus, [*DOCUMENTS, [5, 2]])
    assert Indexed.open(corpus).fingerprint() != before


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64", "uint16"])
def test_tokens_of_every_whole_type_that_megatrons_builder_writes_are_read(
    dtype: str, tmp_path: Path
) -> None:
    found = Indexed.open(tiny.write_corpus(tmp_path / dtype, DOCUMENTS, dtype=dtype))
    assert found.data.tokens.dtype == np.dtype(dtype)
    assert [found.data.document(number).tolist() for number in range(3)] == DOCUMENTS
    with pytest.raises(UserError, match="token id 12 is beyond"):
        found.check_ids(12)


def _write(prefix: Path, kind: type[np.number[Any]], *, is_multimodal: bool = False) -> Path:
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=kind, multimodal=is_multimodal)
    for document in DOCUMENTS:
        builder.add_item(torch.tensor(document), *([0] if is_multimodal else []))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")
    return prefix


def test_an_index_of_something_else_is_refused_as_what_it_is(tmp_path: Path) -> None:
    for kind in (np.float32, np.float64):
        words = f"its tokens are of {kind.__name__}, which are no token ids"
        with pytest.raises(UserError, match=words):
            find(_write(tmp_path / "floats", kind))
    with pytest.raises(UserError, match="a multimodal dataset: each of its 3 sequences has a kind"):
        find(_write(tmp_path / "pictures", np.int32, is_multimodal=True))
    old = tiny.write_corpus(tmp_path / "old", DOCUMENTS).with_suffix(".idx")
    old.write_bytes(b"TNTIDX\0\0" + old.read_bytes()[8:])
    with pytest.raises(UserError, match="an index of the kind before MMIDIDX"):
        find(tmp_path / "old")


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def _swap_lengths(file: Path) -> None:
    content = bytearray(file.read_bytes())
    lengths = np.frombuffer(content, "<i4", 3, 34)
    lengths[:2] = lengths[1::-1]
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("suffix", "change", "words"),
    [
        (".bin", Path.unlink, "small.v1.bin: missing, though small.v1.idx is there"),
        (".idx", Path.unlink, "small.v1.idx: missing, though small.v1.bin is there"),
        (".bin", _cut, "small.v1.bin: 19 bytes are not whole tokens of uint16"),
        (".idx", _cut, "small.v1.idx: not an index of tokens as Megatron writes it, or cut short"),
        (".bin", lambda f: f.write_bytes(f.read_bytes() * 2), "22 tokens, where small.v1.idx"),
        (".bin", lambda f: f.write_bytes(b""), "small.v1.bin: 0 bytes are not whole tokens"),
        (".idx", lambda f: f.write_bytes(b""), "small.v1.idx: not a readable index"),
        (".idx", lambda f: f.write_bytes(b"x" * 100), "small.v1.idx: not an index of tokens"),
        (".idx", _swap_lengths, "small.v1.idx: the documents do not follow each other"),
        (".json", lambda f: f.write_text("{}"), "small.v1.json: not the manifest of an indexed"),
    ],
)
def test_a_damaged_file_is_named(
    corpus: Path, suffix: str, change: Callable[[Path], object], words: str
) -> None:
    change(corpus.with_name(corpus.name + suffix))
    with pytest.raises(UserError) as caught:
        find(corpus)
    assert words in caught.value.message


def test_a_name_that_is_not_there_lists_those_that_are(corpus: Path) -> None:
    with pytest.raises(UserError, match=r"smal: no indexed dataset of this name .*: small\.v1"):
        find(corpus.with_name("smal"))
    with pytest.raises(UserError, match=r"no indexed dataset .* in this folder"):
        find(corpus.parents[1])
