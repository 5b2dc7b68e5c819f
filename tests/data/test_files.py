"""Reading rows: every format, and every way in which a file can be broken."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from alignctl.data.rows.files import Role, find_files, read_rows
from alignctl.errors import UserError

ROWS: list[dict[str, object]] = [{"text": "one"}, {"text": "zwei \u00e9\u4f60"}, {"text": "3"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def records(file: Path) -> list[dict[str, object]]:
    return [row.record for row in read_rows([file])]


def error_of(file: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        list(read_rows([file]))
    return caught.value


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(LINES))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(LINES))
    (tmp_path / "d.json").write_text(json.dumps(ROWS), encoding="utf-8")
    (tmp_path / "e.json").write_bytes(LINES)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "f.parquet")
    files = find_files(tmp_path, "train")
    assert [file.name[0] for file in files] == list("abcdef")
    for file in files:
        assert records(file) == ROWS, file.name


def test_a_byte_order_mark_blank_lines_and_crlf_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf\n{"a": 1}\r\n\r\n   \n{"a": 2}')
    assert [(row.line, row.record) for row in read_rows([file])] == [(2, {"a": 1}), (5, {"a": 2})]


def test_several_zstd_frames_in_a_file_are_read_to_the_end(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.zst"
    file.write_bytes(zstandard.compress(LINES) + zstandard.compress(LINES))
    assert records(file) == ROWS * 2


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": 1}\n{"a": \n')
    assert error_of(file).message.startswith(f"{file}:2: not valid JSON: ")


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"a": 1}\n{"a": "caf\xe9"}\n')
    assert error_of(file).message == f"{file}:2: byte 11 of the line is not UTF-8 (0xe9)"


def test_a_line_that_is_no_object_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"[1]\n")
    assert error_of(file).message == (
        f"{file}:1: a JSON list, where an object like {{...}} is expected"
    )


def test_json_nested_beyond_reason_is_no_traceback(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"[" * 100_000)
    assert f"{file}:1" in error_of(file).message


@pytest.mark.parametrize("suffix", ["zst", "gz"])
def test_a_compressed_file_that_is_cut_short_is_named(tmp_path: Path, suffix: str) -> None:
    lines = "".join(json.dumps({"n": str(n * 7919)}) + "\n" for n in range(5000)).encode()
    whole = zstandard.compress(lines) if suffix == "zst" else gzip.compress(lines)
    file = tmp_path / f"a.jsonl.{suffix}"
    file.write_bytes(whole[: len(whole) // 2])
    message = error_of(file).message
    assert message.startswith(f"{file}:")
    assert "damaged or cut short" in message


@pytest.mark.parametrize("suffix", ["zst", "gz"])
def test_a_file_that_is_not_compressed_at_all_is_named(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a.jsonl.{suffix}"
    file.write_bytes(LINES)
    assert error_of(file).message.startswith(f"{file}:1: the compressed file is damaged")


def test_a_broken_list_and_a_broken_parquet_file_are_named(tmp_path: Path) -> None:
    listed = tmp_path / "a.json"
    listed.write_text('[{"a": 1},\n {"a": }]', encoding="utf-8")
    assert error_of(listed).message.startswith(f"{listed}:2: not valid JSON")
    table = tmp_path / "a.parquet"
    table.write_bytes(b"PAR1 not really")
    assert error_of(table).message.startswith(f"{table}: not a readable parquet file")
    listed.write_text('[{"a": 1}, 7]', encoding="utf-8")
    assert error_of(listed).message.startswith(f"{listed}: row 2: a JSON number")


@pytest.mark.parametrize(
    ("names", "role", "expected"),
    [
        (["train.jsonl", "dev.jsonl", "notes.txt"], "train", ["train.jsonl"]),
        (["train.jsonl", "dev.jsonl", "notes.txt"], "validation", ["dev.jsonl"]),
        (["train.jsonl", "test.jsonl.zst", "dev.jsonl"], "validation", ["dev.jsonl"]),
        (["train.jsonl", "test.parquet"], "validation", ["test.parquet"]),
        (["train-00001.parquet", "train-00000.parquet"], "train", None),
        (["b.jsonl", "a.jsonl", "val.jsonl"], "train", ["a.jsonl", "b.jsonl"]),
        (["training.jsonl", "trainees.jsonl"], "train", ["training.jsonl"]),
        (["a.jsonl", ".hidden.jsonl"], "validation", []),
    ],
)
def test_a_folder_gives_the_files_of_a_role(
    tmp_path: Path, names: list[str], role: Role, expected: list[str] | None
) -> None:
    for name in names:
        (tmp_path / name).touch()
    found = [file.name for file in find_files(tmp_path, role)]
    assert found == (sorted(names) if expected is None else expected)


def test_a_missing_path_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(UserError, match="no such file or folder") as caught:
        find_files(tmp_path / "trian.jsonl", "train")
    assert caught.value.hint == f"did you mean {tmp_path / 'train.jsonl'}?"


def test_a_file_of_an_unknown_kind_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training file"):
        find_files(tmp_path, "train")
    (tmp_path / "rows.csv").touch()
    with pytest.raises(UserError, match="not a kind of data file"):
        find_files(tmp_path / "rows.csv", "train")
