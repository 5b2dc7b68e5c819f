"""Preparation of preferences as a whole: the folder, when it is reused, and who is held out."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from alignctl.config.data import Preferences
from alignctl.data.preference_store import PreferenceData, PreferenceSplit
from alignctl.data.preferences import prepare
from alignctl.data.tokenizer import Tokenizer
from alignctl.errors import UserError
from tests.data.conftest import MakeTokenizer

WriteRows = Callable[..., Path]


def rows(num: int, start: int = 0) -> list[dict[str, str]]:
    return [
        {"prompt": f"{n}+{n}=", "chosen": str(2 * n), "rejected": "?" * (1 + n % 3)}
        for n in range(start, start + num)
    ]


def prompts(split: PreferenceSplit | None, tokenizer: Tokenizer) -> list[str]:
    """The prompts of a split's groups; every document must have that of its group."""
    assert split is not None
    found: list[str] = []
    for group in range(split.num_sequences):
        texts = {
            tokenizer.decode(document.tokens[~document.supervised].tolist())
            for document in map(split.document, split.batch([group]).rows)
        }
        assert len(texts) == 1
        found += texts
    return sorted(found)


def asked(num: int, start: int = 0) -> list[str]:
    return sorted(row["prompt"] for row in rows(num, start))


@pytest.fixture
def tokenizer(make_tokenizer: MakeTokenizer) -> Tokenizer:
    return make_tokenizer()


def test_every_row_becomes_a_group(
    tmp_path: Path, tokenizer: Tokenizer, write_rows: WriteRows
) -> None:
    file = write_rows(rows(7))
    data = PreferenceData.open(prepare(Preferences(train=file), 32, tokenizer, tmp_path / "data"))
    assert prompts(data.train, tokenizer) == asked(7)
    assert data.validation is None
    batch = data.train.batch([6])
    assert batch.scores.tolist() == [1, 0]
    assert [data.where(row) for row in batch.rows] == [f"{file}:7"] * 2
    counts = data.summary.train
    assert (counts.groups, counts.documents, counts.pairs) == (7, 14, 7)
    assert counts.tokens == data.train.sequence_tokens.sum() == len(data.train.tokens)
    assert counts.answer_tokens == data.train.batch(range(7)).num_targets
    assert data.num_documents == 14


def test_a_folder_brings_its_own_validation_file(
    tmp_path: Path, tokenizer: Tokenizer, write_rows: WriteRows
) -> None:
    write_rows(rows(9), "set/train.jsonl")
    write_rows(rows(3, start=50), "set/dev.jsonl")
    settings = Preferences(train=tmp_path / "set", validation_fraction=0.5)
    data = PreferenceData.open(prepare(settings, 32, tokenizer, tmp_path / "data"))
    assert prompts(data.train, tokenizer) == asked(9)
    assert prompts(data.validation, tokenizer) == asked(3, start=50)
    assert data.validation is not None
    assert data.where(data.validation.batch([0]).rows[0]) == f"{tmp_path / 'set' / 'dev.jsonl'}:1"


def test_a_prompt_is_never_on_both_sides(
    tmp_path: Path, tokenizer: Tokenizer, write_rows: WriteRows
) -> None:
    """Ten prompts with three comparisons each: two prompts are held out with all of theirs."""
    again = [row | {"rejected": "!" * n} for n in (1, 2, 3) for row in rows(10)]
    settings = Preferences(train=write_rows(again), validation_fraction=0.2)
    data = PreferenceData.open(prepare(settings, 32, tokenizer, tmp_path / "data"))
    held_out = prompts(data.validation, tokenizer)
    assert len(held_out) == 6
    assert not set(held_out) & set(prompts(data.train, tokenizer))


def test_the_same_content_is_prepared_once(
    tmp_path: Path, make_tokenizer: MakeTokenizer, write_rows: WriteRows
) -> None:
    file, out = write_rows(rows(5)), tmp_path / "data"
    settings = Preferences(train=file)
    calls: list[tuple[int, int | None]] = []

    def on_progress(done: int, total: int | None) -> None:
        calls.append((done, total))

    first = prepare(settings, 32, make_tokenizer(), out, on_progress)
    assert prepare(settings, 32, make_tokenizer(), out, on_progress) == first
    assert calls == [(5, 5)]
    others = {
        prepare(settings, 31, make_tokenizer(), out),
        prepare(settings, 32, make_tokenizer(bos=True), out),
        prepare(settings.model_copy(update={"max_response": 2}), 32, make_tokenizer(), out),
        prepare(settings.model_copy(update={"select": "topk"}), 32, make_tokenizer(), out),
        prepare(settings.model_copy(update={"template": "none"}), 32, make_tokenizer(), out),
        prepare(settings.model_copy(update={"truncation": "left"}), 32, make_tokenizer(), out),
        prepare(
            settings.model_copy(update={"validation_fraction": 0.5}), 32, make_tokenizer(), out
        ),
    }
    write_rows(rows(6))
    others.add(prepare(settings, 32, make_tokenizer(), out))
    assert len(others | {first}) == 9


def test_the_arrays_do_not_depend_on_when_they_are_made(
    tmp_path: Path, tokenizer: Tokenizer, write_rows: WriteRows
) -> None:
    settings = Preferences(train=write_rows(rows(30)), validation_fraction=0.2)
    one, two = (prepare(settings, 32, tokenizer, tmp_path / name) for name in ("one", "two"))
    assert {file.name: file.read_bytes() for file in one.iterdir()} == {
        file.name: file.read_bytes() for file in two.iterdir()
    }


def test_a_bad_row_leaves_nothing_and_is_named(
    tmp_path: Path, tokenizer: Tokenizer, write_rows: WriteRows
) -> None:
    row = {"query": "a", "response": ["b", "c"], "score": [1, float("nan")]}
    good = row | {"score": [1, 0]}
    with pytest.raises(UserError, match=r"train\.jsonl:2: score\[1\] is nan"):
        prepare(Preferences(train=write_rows([good, row])), 32, tokenizer, tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_data_with_nothing_to_compare_is_refused_with_counts(
    tmp_path: Path, tokenizer: Tokenizer, write_rows: WriteRows
) -> None:
    file = write_rows([row | {"rejected": row["chosen"]} for row in rows(4)])
    with pytest.raises(UserError, match="4 rows read, 4 dropped: the same answer twice"):
        prepare(Preferences(train=file), 32, tokenizer, tmp_path / "data")
    with pytest.raises(UserError, match=r"nothing to compare: there is no row in it"):
        prepare(Preferences(train=write_rows([])), 32, tokenizer, tmp_path / "data")


def test_groups_of_a_blend_lie_source_by_source(
    tmp_path: Path, tokenizer: Tokenizer, write_rows: WriteRows
) -> None:
    """The smaller source is taken whole four times in a pass of 8 + 2."""
    a, b = write_rows(rows(8), "a.jsonl"), write_rows(rows(2, 50), "b.jsonl")
    weights = {a: 1.0, b: 4.0}
    folder = prepare(Preferences(blend=weights), 32, tokenizer, tmp_path / "data")
    data = PreferenceData.open(folder, weights.values())
    assert [source.groups for source in data.summary.sources] == [8, 2]
    assert sum(source.answer_tokens for source in data.summary.sources) == (
        data.summary.train.answer_tokens
    )
    assert prompts(data.train, tokenizer) == sorted([*asked(8), *asked(2, 50)])
    for pass_ in range(3):
        taken = data.train.taken(global_batch_size=10, seed=1, step=pass_)
        assert np.bincount(taken, minlength=10)[8:].tolist() == [4, 4]
