"""Preparation as a whole: what is in the folder, when it is reused, and that it is whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignctl.config.data import Data, Packing
from alignctl.data.sft import prepare
from alignctl.data.store import SFTData, Split
from alignctl.data.tokenizer import Tokenizer
from alignctl.errors import RunError, UserError
from tests.data.conftest import MakeTokenizer
from tests.data.test_templates import FORGETFUL, MARKED

WriteRows = Callable[..., Path]


def rows(num: int, start: int = 0) -> list[dict[str, str]]:
    return [
        {"prompt": f"{n}+{n}=", "response": str(2 * n) * (1 + n % 5)}
        for n in range(start, start + num)
    ]


def texts(split: Split | None, tokenizer: Tokenizer) -> list[str]:
    assert split is not None
    numbers = sorted(split.members.tolist())
    return [tokenizer.decode(split.document(n).tokens.tolist()) for n in numbers]


def whole(num: int, start: int = 0) -> list[str]:
    return [row["prompt"] + row["response"] + "</s>" for row in rows(num, start)]


@pytest.fixture
def tokenizer(make_tokenizer: MakeTokenizer) -> Tokenizer:
    return make_tokenizer()


def test_keys_that_nothing_reads_are_counted_file_by_file(
    tmp_path: Path, tokenizer: Tokenizer, write_rows: WriteRows
) -> None:
    file = write_rows([{**row, "id": 1} for row in rows(3)] + [{**rows(1)[0], "id": 2, "x": 3}])
    held_out = write_rows([{**row, "y": 1} for row in rows(2)], "dev.jsonl")
    settings = Data(train=file, validation=held_out)
    data = SFTData.open(prepare(settings, 32, tokenizer, tmp_path / "data"))
    assert data.summary.unread == {str(file): {"id": 4, "x": 1}, str(held_out): {"y": 2}}
    assert data.summary.describe().splitlines()[1:] == [
        f"{file}: keys that are not read: id (4 rows), x (1 rows)",
        f"{held_out}: keys that are not read: y (2 rows)",
    ]


def test_rows_of_which_none_ends_with_eos_are_warned_of(
    tmp_path: Path, make_tokenizer: MakeTokenizer, write_rows: WriteRows
) -> None:
    """The template marks what is learned, and no EOS follows it."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    template = MARKED.replace("{% endgeneration %}{{ eos_token }}", "{% endgeneration %}")
    endless = make_tokenizer(chat_template=template)
    file = write_rows([{"messages": turns}])
    data = SFTData.open(prepare(Data(train=file), 32, endless, tmp_path / "data"))
    assert data.summary.without_eos == 1
    assert "nothing teaches the model to stop" in data.summary.describe()


def test_turns_that_are_rewritten_later_become_documents_of_the_same_row(
    tmp_path: Path, make_tokenizer: MakeTokenizer, write_rows: WriteRows
) -> None:
    roles = ["user", "assistant"] * 2
    turns = [{"role": role, "content": text} for role, text in zip(roles, "abcd", strict=True)]
    forgetful = make_tokenizer(chat_template=FORGETFUL)
    file = write_rows([{"messages": turns[:2]}, {"messages": turns}])
    data = SFTData.open(prepare(Data(train=file), 90, forgetful, tmp_path / "data"))
    assert (data.summary.rows, data.summary.train.documents, data.summary.divided) == (2, 3, 1)
    assert data.lines.tolist() == [1, 2, 2]
    assert "1 learned turn by turn" in data.summary.describe()


def test_answers_that_join_their_prompt_are_counted(
    tmp_path: Path, make_tokenizer: MakeTokenizer, write_rows: WriteRows
) -> None:
    tokenizer = make_tokenizer(merges=[("1", "2")])
    file = write_rows([{"prompt": "1", "response": "2"}, {"prompt": "1", "response": "3"}])
    data = SFTData.open(prepare(Data(train=file), 32, tokenizer, tmp_path / "data"))
    assert data.summary.parted == 1
    assert "1 whose answer joins its prompt's last token" in data.summary.describe()
    assert texts(data.train, tokenizer) == ["12</s>", "13</s>"]


def test_packed_sequences_hold_every_document_once(
    tmp_path: Path, tokenizer: Tokenizer, write_rows: WriteRows
) -> None:
    file = write_rows(rows(40))
    data = SFTData.open(prepare(Data(train=file), 32, tokenizer, tmp_path / "data"))
    assert texts(data.train, tokenizer) == whole(40)
    assert data.train.sequence_tokens.max() <= 32
    assert data.train.num_sequences < 40
    assert data.validation is None
    counts = data.summary.train
    assert (counts.documents, counts.sequences) == (40, data.train.num_sequences)
    assert counts.tokens == data.train.sequence_tokens.sum()
    assert counts.efficiency == counts.tokens / (counts.sequences * 32)
    batch = data.train.batch(range(data.train.num_sequences))
    assert batch.num_targets == counts.supervised_tokens
    assert [data.where(n) for n in (0, 39)] == [f"{file}:1", f"{file}:40"]


def test_without_packing_a_sequence_is_a_document(
    tmp_path: Path, tokenizer: Tokenizer, write_rows: WriteRows
) -> None:
    settings = Data(train=write_rows(rows(7)), packing="none")
    data = SFTData.open(prepare(settings, 32, tokenizer, tmp_path / "data"))
    assert data.train.num_sequences == 7
    assert data.train.batch([3]).rows == (3,)


def test_rows_that_are_packed_step_by_step_are_stored_as_they_are(
    tmp_path: Path, tokenizer: Tokenizer, write_rows: WriteRows
) -> None:
    settings = Data(train=write_rows(rows(7)), packing="step")
    folder = prepare(settings, 32, tokenizer, tmp_path / "data")
    data = SFTData.open(folder)
    assert (data.train.num_sequences, data.summary.train.documents) == (7, 7)
    assert "full" not in data.summary.describe()
    assert (
        prepare(settings.model_copy(update={"packing": "none"}), 32, tokenizer, tmp_path / "data")
        == folder
    )


def test_a_folder_brings_its_own_validation_file(
    tmp_path: Path, tokenizer: Tokenizer, write_rows: WriteRows
) -> None:
    write_rows(rows(9), "set/train.jsonl")
    write_rows(rows(3, start=50), "set/dev.jsonl")
    settings = Data(train=tmp_path / "set", validation_fraction=0.5)
    data = SFTData.open(prepare(settings, 32, tokenizer, tmp_path / "data"))
    assert texts(data.train, tokenizer) == whole(9)
    assert texts(data.validation, tokenizer) == whole(3, start=50)
    assert data.where(9) == f"{tmp_path / 'set' / 'dev.jsonl'}:1"


def test_a_validation_path_wins(
    tmp_path: Path, tokenizer: Tokenizer, write_rows: WriteRows
) -> None:
    write_rows(rows(9), "set/train.jsonl")
    write_rows(rows(3, start=50), "set/dev.jsonl")
    other = write_rows(rows(2, start=80), "other.jsonl")
    settings = Data(train=tmp_path / "set", validation=other)
    data = SFTData.open(prepare(settings, 32, tokenizer, tmp_path / "data"))
    assert texts(data.validation, tokenizer) == whole(2, start=80)


def test_a_fraction_is_held_out_by_text_whatever_the_order(
    tmp_path: Path, tokenizer: Tokenizer, write_rows: WriteRows
) -> None:
    forward = write_rows(rows(50), "a.jsonl")
    backward = write_rows(rows(50)[::-1], "b.jsonl")
    held_out = []
    for file in (forward, backward):
        settings = Data(train=file, validation_fraction=0.1)
        data = SFTData.open(prepare(settings, 32, tokenizer, tmp_path / "data"))
        held_out.append(sorted(texts(data.validation, tokenizer)))
        both = texts(data.train, tokenizer) + texts(data.validation, tokenizer)
        assert sorted(both) == sorted(whole(50))
    assert len(held_out[0]) == 5
    assert held_out[0] == held_out[1]


def test_equal_texts_are_never_on_both_sides(
    tmp_path: Path, tokenizer: Tokenizer, write_rows: WriteRows
) -> None:
    settings = Data(train=write_rows(rows(10) * 3), validation_fraction=0.2)
    data = SFTData.open(prepare(settings, 32, tokenizer, tmp_path / "data"))
    held_out = texts(data.validation, tokenizer)
    assert len(held_out) == 6
    assert not set(held_out) & set(texts(data.train, tokenizer))


def test_the_same_content_is_prepared_once(
    tmp_path: Path, make_tokenizer: MakeTokenizer, write_rows: WriteRows
) -> None:
    file, out = write_rows(rows(5)), tmp_path / "data"
    settings = Data(train=file)
    calls: list[tuple[int, int | None]] = []

    def on_progress(done: int, total: int | None) -> None:
        calls.append((done, total))

    first = prepare(settings, 32, make_tokenizer(), out, on_progress)
    assert calls == [(5, 5)]
    file.touch()
    assert prepare(settings, 32, make_tokenizer(), out, on_progress) == first
    assert calls == [(5, 5)]
    others = {
        prepare(settings, 31, make_tokenizer(), out),
        prepare(settings, 32, make_tokenizer(bos=True), out),
        prepare(settings.model_copy(update={"packing": "none"}), 32, make_tokenizer(), out),
        prepare(settings.model_copy(update={"template": "hh"}), 32, make_tokenizer(), out),
        prepare(settings.model_copy(update={"truncation": "left"}), 32, make_tokenizer(), out),
        prepare(
            settings.model_copy(update={"validation_fraction": 0.5}), 32, make_tokenizer(), out
        ),
    }
    write_rows(rows(6))
    others.add(prepare(settings, 32, make_tokenizer(), out))
    assert len(others | {first}) == 8


def test_the_arrays_do_not_depend_on_when_they_are_made(
    tmp_path: Path, tokenizer: Tokenizer, write_rows: WriteRows
) -> None:
    settings = Data(train=write_rows(rows(30)), validation_fraction=0.2)
    one, two = (prepare(settings, 32, tokenizer, tmp_path / name) for name in ("one", "two"))
    assert {file.name: file.read_bytes() for file in one.iterdir()} == {
        file.name: file.read_bytes() for file in two.iterdir()
    }


def test_a_failure_leaves_nothing_and_leftovers_of_a_kill_do_not_matter(
    tmp_path: Path, tokenizer: Tokenizer, write_rows: WriteRows
) -> None:
    file, out = write_rows(rows(5)), tmp_path / "data"
    good = file.read_bytes()
    file.write_bytes(good + b"{broken\n")
    with pytest.raises(UserError, match=r"train\.jsonl:6: not valid JSON"):
        prepare(Data(train=file), 32, tokenizer, out)
    assert list(out.iterdir()) == []
    file.write_bytes(good)
    folder = prepare(Data(train=file), 32, tokenizer, out)
    partial = out / f".{folder.name}.partial"
    folder.rename(partial)
    (partial / "tokens.npy").write_bytes(b"half")
    assert prepare(Data(train=file), 32, tokenizer, out) == folder
    assert texts(SFTData.open(folder).train, tokenizer) == whole(5)
    assert list(out.iterdir()) == [folder]


def test_an_interrupted_preparation_leaves_nothing(
    tmp_path: Path, tokenizer: Tokenizer, write_rows: WriteRows
) -> None:
    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(Data(train=write_rows(rows(5))), 32, tokenizer, tmp_path / "data", interrupt)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_failure_of_the_run(
    tmp_path: Path, tokenizer: Tokenizer, write_rows: WriteRows
) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(RunError, match="prepared data could not be written"):
        prepare(Data(train=write_rows(rows(5))), 32, tokenizer, tmp_path / "data")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "there is no row in it"),
        (b"\n\n", "there is no row in it"),
        (b'{"prompt": "a", "response": ""}\n', "1 rows read, 1 dropped"),
    ],
)
def test_data_with_nothing_to_learn_is_refused_with_counts(
    tmp_path: Path, tokenizer: Tokenizer, content: bytes, why: str
) -> None:
    file = tmp_path / "train.jsonl"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"nothing to learn from: {why}"):
        prepare(Data(train=file), 32, tokenizer, tmp_path / "data")


def test_an_empty_validation_file_and_a_missing_one_are_refused(
    tmp_path: Path, tokenizer: Tokenizer, write_rows: WriteRows
) -> None:
    train, empty = write_rows(rows(5)), write_rows([], "dev.jsonl")
    with pytest.raises(UserError, match=r"dev\.jsonl: nothing to learn from: there is no row"):
        prepare(Data(train=train, validation=empty), 32, tokenizer, tmp_path / "data")
    with pytest.raises(UserError, match="no such file"):
        prepare(Data(train=train, validation=tmp_path / "no.jsonl"), 32, tokenizer, tmp_path / "d")
    with pytest.raises(UserError, match="no training data"):
        prepare(Data(train=None), 32, tokenizer, tmp_path / "data")


def test_holding_everything_out_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, write_rows: WriteRows
) -> None:
    settings = Data(train=write_rows(rows(1)), validation_fraction=0.1)
    with pytest.raises(UserError, match=r"validation_fraction=0\.1 of 1 documents leaves nothing"):
        prepare(settings, 32, tokenizer, tmp_path / "data")


def test_a_row_too_long_for_its_window_is_cut_and_counted(
    tmp_path: Path, tokenizer: Tokenizer, write_rows: WriteRows
) -> None:
    """The window is 5 tokens: EOS, the answer of 2 and the last 2 of the prompt's 4."""
    file = write_rows([{"prompt": "abcd", "response": "ef"}])
    data = SFTData.open(prepare(Data(train=file), 4, tokenizer, tmp_path / "data"))
    assert texts(data.train, tokenizer) == ["cdef</s>"]
    assert data.summary.truncated == 1
    assert data.train.document(0).supervised.tolist() == [False, False, True, True, True]
    assert np.array_equal(data.train.sequence_tokens, [4])


# ---- blends ----


def blend(weights: dict[Path, float], **settings: Any) -> Data:
    return Data(blend=weights, **settings)


def sources_of(data: SFTData) -> list[set[str]]:
    """The files that each training sequence has rows of."""
    train = data.train
    return [
        {data.where(row).partition(":")[0] for row in train.batch([number]).rows}
        for number in range(train.num_sequences)
    ]


@pytest.mark.parametrize("packing", ["step", "all"])
def test_a_sequence_of_a_blend_is_of_one_source(
    tmp_path: Path, tokenizer: Tokenizer, write_rows: WriteRows, packing: Packing
) -> None:
    """Sources may have rows of different kinds, and lie in the order of their names."""
    texts_of_b = [{"text": f"\n\nHuman: {n}\n\nAssistant: {n}"} for n in range(12)]
    a, b = write_rows(rows(30), "a.jsonl"), write_rows(texts_of_b, "b.jsonl")
    settings = blend({b: 3.0, a: 1.0}, packing=packing)
    folder = prepare(settings, 64, tokenizer, tmp_path / "data")
    data = SFTData.open(folder, settings.weights.values())
    of_a, of_b = data.summary.sources
    assert (of_a.documents, of_b.documents) == (30, 12)
    assert sources_of(data) == [{str(a)}] * of_a.sequences + [{str(b)}] * of_b.sequences
    assert (of_a.sequences < 30) == (of_b.sequences < 12) == (packing == "all")
    whole = data.summary.train
    for name in ("documents", "sequences", "tokens", "supervised_tokens"):
        assert getattr(whole, name) == getattr(of_a, name) + getattr(of_b, name)
    taken = whole.sequences * 3 / 4
    assert [share.size for share in data.train.shares] == [of_a.sequences, of_b.sequences]
    assert data.train.shares[1].taken == pytest.approx(taken, abs=0.5)


def test_what_a_blend_is_prepared_to_does_not_depend_on_weights_or_how_it_is_written(
    tmp_path: Path, tokenizer: Tokenizer, write_rows: WriteRows
) -> None:
    a, b = write_rows(rows(5), "set/a.jsonl"), write_rows(rows(5, 20), "set/b.jsonl")
    out = tmp_path / "data"
    folder = prepare(blend({a: 1.0, b: 2.0}), 32, tokenizer, out)
    assert prepare(blend({b: 1.0, a: 9.0}), 32, tokenizer, out) == folder
    whole = prepare(Data(train=tmp_path / "set"), 32, tokenizer, out)
    assert whole != folder
    assert SFTData.open(whole).train.shares == ()


def test_held_out_of_a_blend_are_its_folders_validation_files_or_a_share_of_all(
    tmp_path: Path, tokenizer: Tokenizer, write_rows: WriteRows
) -> None:
    """Those of each folder may be of another kind, as its training files are."""
    write_rows(rows(9), "a/train.jsonl")
    write_rows(rows(3, 50), "a/dev.jsonl")
    of_b = [{"text": f"\n\nHuman: {n}\n\nAssistant: {n}"} for n in range(9)]
    write_rows(of_b[:7], "b/train.jsonl")
    write_rows(of_b[7:], "b/dev.jsonl")
    c = write_rows(rows(20, 300), "c.jsonl")
    a, b = tmp_path / "a", tmp_path / "b"

    def held_out(weights: dict[Path, float], **settings: Any) -> list[str]:
        folder = prepare(blend(weights, **settings), 32, tokenizer, tmp_path / "data")
        return texts(SFTData.open(folder, weights.values()).validation, tokenizer)

    texts_of_b = [row["text"] + "</s>" for row in of_b]
    assert held_out({a: 1.0, b: 1.0, c: 1.0}) == whole(3, 50) + texts_of_b[7:]
    assert held_out({a: 1.0, b: 1.0}, validation=c) == whole(20, 300)
    files = {a / "train.jsonl": 1.0, c: 1.0}
    assert len(held_out(files, validation_fraction=0.2)) == 6  # of 29


def test_what_is_wrong_with_a_source_of_a_blend_is_named(
    tmp_path: Path, tokenizer: Tokenizer, write_rows: WriteRows
) -> None:
    a, empty = write_rows(rows(9), "set/a.jsonl"), write_rows([], "empty.jsonl")
    (tmp_path / "link.jsonl").symlink_to(a)

    def refusal(*paths: Path) -> str:
        with pytest.raises(UserError) as caught:
            prepare(blend(dict.fromkeys(paths, 1.0)), 32, tokenizer, tmp_path / "data")
        return caught.value.message

    for again in (tmp_path / "link.jsonl", tmp_path / "set", tmp_path / "set/../set/a.jsonl"):
        first, second = sorted([a, again])
        assert f"data.blend: {first} and {second} have the same file, " in refusal(a, again)
    assert refusal(a, empty) == f"{empty}: nothing to learn from: there is no row in it"
    assert "no.jsonl: no such file" in refusal(a, tmp_path / "no.jsonl")
