import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from alignctl.corpus import shards
from alignctl.corpus.shards import Options, shard
from alignctl.corpus.writers import Compression
from alignctl.data.rows.files import find_files, read_rows
from alignctl.errors import UserError

TEXTS = [f"text {i}" for i in range(100)]


def texts_in(folder: Path) -> list[str]:
    return [str(row.record["text"]) for row in read_rows(find_files(folder, "train"))]


def test_rows_are_cut_by_number_in_order(tmp_path: Path, write_texts: Callable[..., Path]) -> None:
    files = (write_texts(TEXTS[:30], "a.jsonl"), write_texts(TEXTS[30:], "b.jsonl"))
    written = shard(Options(files, tmp_path / "out", lines=40))
    assert [each.lines for each in written] == [40, 40, 20]
    assert written[0].record.name == "train-00000.jsonl.zst"
    assert texts_in(tmp_path / "out") == TEXTS


@pytest.mark.parametrize("compression", ["none", "gz", "zst"])
def test_rows_are_cut_by_bytes(
    tmp_path: Path, write_texts: Callable[..., Path], compression: Compression
) -> None:
    """`{"text": "text NN"}` and a line break are 20 bytes: five fit into 105."""
    file = write_texts([*TEXTS[10:], "long" * 100])
    written = shard(Options((file,), tmp_path / "out", bytes=105, compression=compression))
    assert [each.lines for each in written] == [5] * 18 + [1]
    assert texts_in(tmp_path / "out") == [*TEXTS[10:], "long" * 100]


def test_a_shuffle_is_a_permutation_that_its_seed_decides(
    tmp_path: Path, write_texts: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_BUCKET_BYTES", 300)
    file = write_texts(TEXTS)
    orders = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        shard(Options((file,), tmp_path / name, shuffle=True, seed=seed))
        orders.append(texts_in(tmp_path / name))
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0] != TEXTS
    assert Counter(orders[0]) == Counter(TEXTS)
    assert [file.name for file in (tmp_path / "a").iterdir() if file.name.startswith(".")] == []


def test_every_row_may_come_first(
    tmp_path: Path, write_texts: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dealt to buckets and shuffled in them: each of 4 rows is first in about a quarter of 100.

    The standard deviation of such a count is 4.3, so 8 to 42 is four of them.
    """
    monkeypatch.setattr(shards, "_BUCKET_BYTES", 20)
    file = write_texts(TEXTS[:4])
    first: Counter[str] = Counter()
    for seed in range(100):
        options = Options((file,), tmp_path / str(seed), shuffle=True, seed=seed)
        shard(options)
        first[texts_in(options.folder)[0]] += 1
    assert all(8 <= first[text] <= 42 for text in TEXTS[:4]), first


def test_equal_rows_give_equal_files(tmp_path: Path, write_texts: Callable[..., Path]) -> None:
    file = write_texts(TEXTS)
    for compression in ("gz", "zst"):
        both = [
            shard(Options((file,), tmp_path / f"{compression}{n}", compression=compression))
            for n in range(2)
        ]
        assert both[0] == both[1]
        content = (tmp_path / f"{compression}0" / "manifest.json").read_text()
        assert json.loads(content)["rows"] == 100


def test_a_broken_row_is_found_before_it_is_hidden_in_a_shard(
    tmp_path: Path, write_texts: Callable[..., Path]
) -> None:
    file = write_texts(["a"])
    with file.open("a") as stream:
        stream.write('{"text": "cut of')
    with pytest.raises(UserError, match=r"train\.jsonl:2: not valid JSON"):
        shard(Options((file,), tmp_path / "out"))
    assert not list(tmp_path.glob("*out*"))
