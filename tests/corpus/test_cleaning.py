import gzip
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from alignctl.corpus import blocks, shards
from alignctl.corpus.cleaning.pipeline import Options, clean
from alignctl.errors import UserError
from tests.commands import alignctl


def texts_in(folder: Path) -> list[str]:
    lines = (folder / "train.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
    return content


def test_every_document_is_kept_or_counted(
    tmp_path: Path, write_texts: Callable[..., Path]
) -> None:
    english = "The whale is the largest animal that has ever lived in the sea or on the land."
    german = "Der Wal ist das groesste Tier, das jemals im Meer oder an Land gelebt hat."
    texts = [english, german, "   ", "hm", english, english.upper(), "x" * 500, "See www.a.org ok"]
    file = write_texts(texts)
    with file.open("ab") as stream:
        stream.write(b'\n{"text": 5}\n{"text": "caf\xe9"}\nno json\n')
    options = Options(
        (file,), tmp_path / "out", languages=("en",), min_characters=3, max_characters=400
    )
    outcome = clean(options)
    assert texts_in(tmp_path / "out")[0] == english
    assert outcome.documents == 11
    assert outcome.documents == outcome.kept + sum(outcome.dropped.values())
    expected = {"unreadable": 3, "empty": 1, "short": 1, "long": 1, "exact_duplicate": 1}
    assert {key: outcome.dropped[key] for key in expected} == expected
    assert outcome.dropped["near_duplicate"] == 1
    assert outcome.dropped["language"] >= 1
    written = manifest(tmp_path / "out")
    assert written["outcome"]["dropped"] == outcome.dropped
    assert written["source"][0]["bytes"] == file.stat().st_size


def test_broken_lines_are_kept_aside_with_their_places(
    tmp_path: Path, write_texts: Callable[..., Path]
) -> None:
    file = write_texts(["fine"])
    with file.open("ab") as stream:
        stream.write(b'\n{"text": "caf\xe9"}\n{"title": "t"}\n')
    outcome = clean(Options((file,), tmp_path / "out"))
    rejected = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").open()]
    assert [row["line"] for row in rejected] == [3, 4]
    assert rejected[0]["raw"] == '{"text": "caf\\xe9"}'
    assert "no key 'text' in this row (its keys: title)" in rejected[1]["error"]
    assert outcome.rejected[0] == rejected[0]["error"]


def test_a_file_whose_name_is_no_text_is_named_by_its_bytes(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"a\xff.jsonl")
    file.write_bytes(b'{"text": "fine"}\n{"title": "t"}\n')
    clean(Options((file,), tmp_path / "out"))
    (line,) = (tmp_path / "out/rejected.jsonl").open()
    assert os.fsencode(json.loads(line)["file"]).endswith(b"a\xff.jsonl")


def test_nothing_is_kept_aside_when_all_is_well(
    tmp_path: Path, write_texts: Callable[..., Path]
) -> None:
    clean(Options((write_texts(["a", "b"]),), tmp_path / "out"))
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["manifest.json", "train.jsonl"]


def test_the_result_does_not_depend_on_blocks_or_workers(
    tmp_path: Path, write_texts: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_texts(
        [f"document {i % 50} has a number {i * i % 70} of its own" for i in range(200)]
    )
    whole = Options((file,), tmp_path / "whole")
    outcome = clean(whole)
    assert outcome.dropped["exact_duplicate"] > 0
    assert clean(replace(whole, folder=tmp_path / "two", workers=2)) == outcome
    monkeypatch.setattr(blocks, "_BLOCK_BYTES", 300)
    assert clean(replace(whole, folder=tmp_path / "small")) == outcome
    assert (
        texts_in(tmp_path / "whole") == texts_in(tmp_path / "small") == texts_in(tmp_path / "two")
    )


def test_clean_text_is_not_changed_by_cleaning_it_again(
    tmp_path: Path, write_texts: Callable[..., Path]
) -> None:
    file = write_texts([f"a  text\r\n number {i}, http://x.org/{i}; " * (i % 4) for i in range(40)])
    clean(Options((file,), tmp_path / "once"))
    again = clean(Options((tmp_path / "once/train.jsonl",), tmp_path / "twice"))
    assert not any(again.dropped.values())
    assert texts_in(tmp_path / "twice") == texts_in(tmp_path / "once")


def test_the_text_is_found_under_the_tutorials_keys(tmp_path: Path) -> None:
    rows = [{"title": "t", "content": "one"}, {"title": "t", "content": "two"}]
    (tmp_path / "part-1.json").write_text(json.dumps(rows, indent=1))
    clean(Options((tmp_path / "part-1.json",), tmp_path / "out"))
    assert texts_in(tmp_path / "out") == ["one", "two"]
    assert manifest(tmp_path / "out")["settings"]["key"] == "content"


def test_other_keys_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "b", "title": "t"}\n')
    with pytest.raises(UserError, match=r"none of the keys text, content, output.*body, title"):
        clean(Options((tmp_path / "a.jsonl",), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_text_file_is_one_document_or_one_per_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\n\ntwo\n")
    clean(Options((tmp_path / "a.txt",), tmp_path / "file"))
    assert texts_in(tmp_path / "file") == ["one\n\ntwo"]
    clean(Options((tmp_path / "a.txt",), tmp_path / "line", txt="line"))
    assert texts_in(tmp_path / "line") == ["one", "two"]


def test_nothing_left_is_an_error_that_counts(
    tmp_path: Path, write_texts: Callable[..., Path]
) -> None:
    options = Options((write_texts(["a", "b"]),), tmp_path / "out", min_characters=9)
    with pytest.raises(UserError, match="no document is left: 2 documents, 2 dropped: too short"):
        clean(options)
    assert not list(tmp_path.glob("*out*"))


def test_the_command_tells_what_was_left_out(
    tmp_path: Path, write_texts: Callable[..., Path]
) -> None:
    file = write_texts(["one", "one", "two"])
    with file.open("ab") as stream:
        stream.write(b"\nnope\n")
    done = alignctl("prepare", "clean", file, "--output", tmp_path / "out", "--workers", 1)
    assert done.code == 0, done.text
    assert f"rejected: {file}:5: not valid JSON" in done.err
    assert "4 documents, 1 dropped: unreadable: see rejected.jsonl, 1 dropped: the same" in done.err
    assert "2 kept" in done.err


def test_a_language_nobody_knows_names_the_nearest(
    tmp_path: Path, write_texts: Callable[..., Path]
) -> None:
    file = write_texts(["one"])
    flags = ("--output", tmp_path / "out", "--languages", "zh,enn")
    failed = alignctl("prepare", "clean", file, *flags)
    assert failed.code == 2
    assert "'enn' is not the code of a language" in failed.err
    assert "did you mean" in failed.err


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_that_ends_early_leaves_no_folder(tmp_path: Path, suffix: str) -> None:
    lines = "".join(json.dumps({"text": str(i**7)}) + "\n" for i in range(2000)).encode()
    whole = gzip.compress(lines) if suffix == ".gz" else zstandard.compress(lines)
    file = tmp_path / f"a.jsonl{suffix}"
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.jsonl.*damaged or cut short"):
        clean(Options((file,), tmp_path / "out"))
    with pytest.raises(UserError, match=r"a\.jsonl.*damaged or cut short"):
        shards.shard(shards.Options((file,), tmp_path / "out"))
    assert [entry.name for entry in tmp_path.iterdir()] == [file.name]
