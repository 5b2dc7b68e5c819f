"""Folders as others leave them: snapshots and caches of the hub, and what `datasets` has saved."""

import json
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pytest

from alignctl.data.rows.files import Role, find_files, read_rows
from alignctl.errors import UserError

ROWS = [{"prompt": f"{number}?", "n": number} for number in range(2500)]


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("", encoding="utf-8")


def found(folder: Path, role: Role) -> list[str]:
    return [str(file.relative_to(folder)) for file in find_files(folder, role)]


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_both_formats_of_arrow_files_are_read(tmp_path: Path, kind: str) -> None:
    """The batches are larger than those in which rows are read."""
    table, file = pyarrow.Table.from_pylist(ROWS), tmp_path / "train.arrow"
    new = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
    with file.open("wb") as stream, new(stream, table.schema) as writer:
        writer.write_table(table)
    rows = list(read_rows(find_files(tmp_path, "train")))
    assert [row.record for row in rows] == ROWS
    assert rows[-1].where == f"{file}: row 2500"


@pytest.mark.parametrize("content", [b"", b"not arrow", b"ARROW1 not either", b"\xff" * 64])
def test_a_file_that_is_not_arrow_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "train.arrow"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        list(read_rows([file]))
    assert caught.value.message.startswith(f"{file}: not a readable arrow file")


def test_a_cut_arrow_file_is_named(tmp_path: Path) -> None:
    table, file = pyarrow.Table.from_pylist(ROWS), tmp_path / "train.arrow"
    with file.open("wb") as stream, pyarrow.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    file.write_bytes(file.read_bytes()[:-3000])
    with pytest.raises(UserError, match="not a readable arrow file"):
        list(read_rows([file]))


@pytest.mark.parametrize(
    ("names", "train", "held_out"),
    [
        pytest.param(
            "README.md dataset_infos.json data/train-00000-of-00002.parquet "
            "data/train-00001-of-00002.parquet data/test-00000-of-00001.parquet",
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
            ["data/test-00000-of-00001.parquet"],
            id="a snapshot",
        ),
        pytest.param(
            "dataset_dict.json train/data-00000-of-00001.arrow train/state.json "
            "train/dataset_info.json test/data-00000-of-00001.arrow test/state.json",
            ["train/data-00000-of-00001.arrow"],
            ["test/data-00000-of-00001.arrow"],
            id="what save_to_disk writes",
        ),
        pytest.param(
            "dataset_info.json state.json data-00000-of-00001.arrow cache-1f.arrow",
            ["data-00000-of-00001.arrow"],
            [],
            id="the same of one split, after map",
        ),
        pytest.param(
            "main/0.0.0/abc/gsm8k-train.arrow main/0.0.0/abc/gsm8k-test.arrow "
            "main/0.0.0/abc/dataset_info.json main/0.0.0/abc_builder.lock",
            ["main/0.0.0/abc/gsm8k-train.arrow"],
            ["main/0.0.0/abc/gsm8k-test.arrow"],
            id="the cache of datasets, from its top",
        ),
        ("my_train.jsonl my_dev.jsonl other.jsonl", ["my_train.jsonl"], ["my_dev.jsonl"]),
        ("eval-train.arrow eval-test.arrow", [], ["eval-test.arrow", "eval-train.arrow"]),
        ("code_eval-train.arrow code_eval-test.arrow", ["code_eval-train.arrow"], None),
        ("train.jsonl more/test.jsonl", ["train.jsonl"], []),
        (".git/train.jsonl __x/train.jsonl a/train.jsonl", ["a/train.jsonl"], []),
    ],
)
def test_a_folder_gives_the_files_of_its_splits(
    tmp_path: Path, names: str, train: list[str], held_out: list[str] | None
) -> None:
    make(tmp_path, *names.split())
    if train:
        assert found(tmp_path, "train") == train
    if held_out is not None:
        assert found(tmp_path, "validation") == held_out


def test_folders_beside_each_other_are_several_data_sets(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.json", "train/b/1.json", "Test/a/1.json")
    with pytest.raises(UserError, match="several data sets are in it: a, b") as caught:
        find_files(tmp_path, "train")
    assert caught.value.hint == f"give the subfolder of one, such as {tmp_path / 'train' / 'b'}"


def cache(tmp_path: Path, ref: str | None, *revisions: str) -> Path:
    """A folder of the hub's cache, with links as its own library makes them."""
    top = tmp_path / "datasets--openai--gsm8k"
    make(top, "blobs/1f", "refs/other")
    for revision in revisions:
        for name in ("main/train-00000-of-00001.parquet", "socratic/train-00000-of-00001.parquet"):
            link = top / "snapshots" / revision / name
            link.parent.mkdir(parents=True)
            link.symlink_to("../../../blobs/1f")
    if ref is not None:
        (top / "refs" / "main").write_text(ref, encoding="utf-8")
    return top


def test_a_folder_of_the_hubs_cache_stands_for_its_newest_snapshot(tmp_path: Path) -> None:
    top = cache(tmp_path, "b" * 40, "a" * 40, "b" * 40)
    with pytest.raises(UserError, match="several data sets are in it: main, socratic") as caught:
        find_files(top, "train")
    snapshot = top / "snapshots" / ("b" * 40)
    assert caught.value.hint == f"give the subfolder of one, such as {snapshot / 'socratic'}"
    [file] = find_files(snapshot / "main", "train")
    assert file.name == "train-00000-of-00001.parquet"
    assert file.is_symlink()


def test_a_cache_whose_ref_leads_nowhere_is_refused(tmp_path: Path) -> None:
    top = cache(tmp_path, "../../elsewhere", "a" * 40)
    with pytest.raises(UserError, match="names no snapshot that is here") as caught:
        find_files(top, "train")
    assert caught.value.hint == f"give one: {top / 'snapshots' / ('a' * 40)}"


def test_without_a_ref_the_only_snapshot_is_meant(tmp_path: Path) -> None:
    top = cache(tmp_path, None, "a" * 40)
    with pytest.raises(UserError, match=f"snapshots/{'a' * 40}: several data sets"):
        find_files(top, "train")


def test_shards_of_several_training_splits_are_not_mixed(tmp_path: Path) -> None:
    make(tmp_path, "data/train_gen-00000-of-00001.parquet", "data/train_sft-00000-of-00001.parquet")
    with pytest.raises(UserError, match="several splits to train on: train_gen, train_sft"):
        find_files(tmp_path, "train")


def test_what_prepare_writes_is_several_data_sets(tmp_path: Path) -> None:
    make(tmp_path, "sft/train.jsonl", "math/train.jsonl")
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1}), encoding="utf-8")
    with pytest.raises(UserError, match="several data sets are in it: math, sft"):
        find_files(tmp_path, "train")


def test_a_folder_of_what_is_held_out_alone_says_which_name_says_so(tmp_path: Path) -> None:
    make(tmp_path, "my-test.jsonl")
    with pytest.raises(UserError, match="no training file in this folder") as caught:
        find_files(tmp_path, "train")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("by its name my-test.jsonl is held out: ")
