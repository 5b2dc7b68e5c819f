import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder
from transformers import AutoTokenizer

from alignctl.corpus import blocks, tokenization
from alignctl.corpus.indexed import IndexedTokens
from alignctl.corpus.manifest import name_beside, read_manifest, verify_files
from alignctl.corpus.tokenization import Counts, Options, tokenize
from alignctl.errors import RunError, UserError
from tests.commands import alignctl, kill_tree, start, wait_until
from tests.corpus.conftest import some_texts

SUFFIXES = (".bin", ".idx")


def megatron(prefix: Path, texts: list[str], tokenizer: Path, *, eod: bool) -> Path:
    """The dataset as Megatron-LM's preprocessing writes it: one call per document."""
    from_hf = AutoTokenizer.from_pretrained(tokenizer)
    dtype = DType.optimal_dtype(len(from_hf))
    builder = IndexedDatasetBuilder(str(name_beside(prefix, ".bin")), dtype)
    for text in texts:
        ids = from_hf(text)["input_ids"]
        if ids:
            ids += [from_hf.eos_token_id] * eod
            builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(str(name_beside(prefix, ".idx")))
    return prefix


def content(prefix: Path) -> list[bytes]:
    return [name_beside(prefix, suffix).read_bytes() for suffix in SUFFIXES]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few documents."""
    monkeypatch.setattr(blocks, "_BLOCK_BYTES", 500)


@pytest.mark.parametrize("eod", [True, False])
@pytest.mark.usefixtures("small_blocks")
def test_the_bytes_are_those_of_megatrons_builder(
    tmp_path: Path, tokenizer_folder: Path, write_texts: Callable[..., Path], eod: bool
) -> None:
    texts = some_texts(200)
    options = Options(
        (write_texts(texts),), tmp_path / "ours", tokenizer_folder, append_eod=eod, workers=1
    )
    manifest = tokenize(options)
    theirs = megatron(tmp_path / "theirs", texts, tokenizer_folder, eod=eod)
    assert content(options.prefix) == content(theirs)
    read = IndexedDataset(str(options.prefix))
    assert len(read) == manifest.documents == sum(1 for text in texts if text)
    assert manifest.tokens == sum(read.sequence_lengths)
    assert read_manifest(options.prefix) == manifest
    verify_files(options.prefix, manifest)
    assert not list(tmp_path.glob(".*")), "nothing but the dataset is left"


def test_ids_of_a_large_vocabulary_take_four_bytes(
    tmp_path: Path, write_texts: Callable[..., Path]
) -> None:
    """Megatron's builder takes two bytes below 65500 ids, and so do we."""
    from tests.tiny import write_tokenizer

    tokenizer = write_tokenizer(tmp_path / "large", num_extra=65500)
    texts = ["the moth <extra_65499>", "that"]
    manifest = tokenize(Options((write_texts(texts),), tmp_path / "ours", tokenizer))
    assert manifest.dtype == "int32"
    theirs = megatron(tmp_path / "theirs", texts, tokenizer, eod=False)
    assert content(tmp_path / "ours") == content(theirs)


def test_documents_start_with_bos_where_the_tokenizer_puts_one(
    tmp_path: Path, tokenizer_folder: Path, write_texts: Callable[..., Path]
) -> None:
    folder = tmp_path / "with-bos"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
    settings = json.loads((tokenizer_folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "add_bos_token": True}))
    manifest = tokenize(
        Options((write_texts(["the", ""]),), tmp_path / "data", folder, append_eod=True)
    )
    data = IndexedTokens.open(tmp_path / "data")
    assert manifest.bos == 1
    assert data.document(0)[[0, -1]].tolist() == [1, 2]
    assert manifest.documents == 1, "BOS and EOS alone are no document"


@pytest.mark.usefixtures("small_blocks")
def test_every_kind_of_file_gives_the_same_documents(
    tmp_path: Path, tokenizer_folder: Path, write_texts: Callable[..., Path]
) -> None:
    import pyarrow
    import pyarrow.parquet

    texts = [text for text in some_texts(60) if text]
    plain = write_texts(texts)
    rows = [{"text": text} for text in texts]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(plain.read_bytes()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    results = []
    for name in ("train.jsonl", "a.json", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"):
        prefix = tmp_path / "out" / name.replace(".", "-")
        tokenize(Options((tmp_path / name,), prefix, tokenizer_folder))
        results.append(content(prefix))
    assert all(result == results[0] for result in results)


@pytest.mark.usefixtures("small_blocks")
def test_an_interrupted_run_ends_with_the_same_bytes(
    tmp_path: Path,
    tokenizer_folder: Path,
    write_texts: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped in every third block, which is written then, but not accounted for."""
    files = (write_texts(some_texts(90)), write_texts(some_texts(40), "more.jsonl"))
    whole = Options(files, tmp_path / "whole", tokenizer_folder, append_eod=True)
    tokenize(whole)
    monkeypatch.setattr(tokenization, "_SECONDS_BETWEEN_COMMITS", -1)
    parts = replace(whole, prefix=tmp_path / "parts")
    resumed: list[int] = []
    while not name_beside(parts.prefix, ".json").exists():
        with suppress(KeyboardInterrupt):
            tokenize(parts, interrupt_third(), lambda counts: resumed.append(counts.blocks))
    assert resumed == list(range(2, 2 * len(resumed) + 1, 2))
    assert len(resumed) > 2
    assert content(parts.prefix) == content(whole.prefix)


def interrupt_third() -> Callable[[Counts], None]:
    """Ctrl-C after the third block."""
    calls = count(1)

    def note(_: Counts) -> None:
        if next(calls) == 3:
            raise KeyboardInterrupt

    return note


def test_other_rows_start_anew(
    tmp_path: Path, tokenizer_folder: Path, write_texts: Callable[..., Path]
) -> None:
    file = write_texts(["the moth"])
    options = Options((file,), tmp_path / "data", tokenizer_folder)

    def interrupt(_: Counts) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize(options, interrupt)
    file.write_text('{"text": "that"}\n')
    assert tokenize(options).documents == 1
    assert len(IndexedTokens.open(options.prefix).tokens) == 3, "th, a and t"


@pytest.mark.slow
def test_workers_change_nothing_and_one_that_is_killed_is_told(
    tmp_path: Path, tokenizer_folder: Path, write_texts: Callable[..., Path]
) -> None:
    texts = some_texts(30_000)
    file = write_texts(texts)
    for workers in (1, 2, 3):
        tokenize(Options((file,), tmp_path / f"by-{workers}", tokenizer_folder, workers=workers))
    assert content(tmp_path / "by-1") == content(tmp_path / "by-2") == content(tmp_path / "by-3")

    def kill(_: Counts) -> None:
        import multiprocessing

        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGKILL)

    options = Options((file,), tmp_path / "killed", tokenizer_folder, workers=2)
    with pytest.raises(RunError, match="a worker process was killed"):
        tokenize(options, kill)
    assert not list(tmp_path.glob("killed.*"))
    tokenize(options)
    assert content(tmp_path / "killed") == content(tmp_path / "by-1")


@pytest.mark.slow
def test_a_command_that_is_killed_goes_on_and_leaves_no_process(
    tmp_path: Path, tokenizer_folder: Path, write_texts: Callable[..., Path]
) -> None:
    file = write_texts(some_texts(100_000))
    flags = ("--tokenizer", tokenizer_folder, "--workers", 2)
    command = ("prepare", "tokenize", file, *flags, "--output", tmp_path / "data")
    process = start(*command)
    state = tmp_path / ".data.partial" / "state.json"
    wait_until(lambda: state.exists(), process)
    kill_tree(process)
    assert not (tmp_path / "data.bin").exists()
    done = alignctl(*command)
    assert done.code == 0, done.text
    assert "an earlier run did" in done.err
    tokenize(Options((file,), tmp_path / "whole", tokenizer_folder))
    assert content(tmp_path / "data") == content(tmp_path / "whole")


_DIES = """
import os, signal, sys
from pathlib import Path
from alignctl.corpus.tokenization import Options, tokenize

left = int(sys.argv[1])

def dying(change):
    def changed(*args, **keywords):
        global left
        change(*args, **keywords)
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
    return changed

for name in ("rename", "replace", "unlink", "rmdir"):
    setattr(os, name, dying(getattr(os, name)))
tokenize(Options((Path(sys.argv[2]),), Path(sys.argv[3]), Path(sys.argv[4])))
"""
"""Dies after so many files got, changed or lost a name."""


@pytest.mark.slow
def test_a_run_that_dies_wherever_files_get_their_names_goes_on(
    tmp_path: Path, tokenizer_folder: Path, write_texts: Callable[..., Path]
) -> None:
    file, prefix = write_texts(some_texts(300)), tmp_path / "data"
    tokenize(Options((file,), tmp_path / "whole", tokenizer_folder))
    for number in count(1):
        words = [sys.executable, "-c", _DIES, number, file, prefix, tokenizer_folder]
        died = subprocess.run([str(word) for word in words], check=False).returncode
        finished = name_beside(prefix, ".json").exists()
        steps: list[Counts] = []
        tokenize(Options((file,), prefix, tokenizer_folder), steps.append, steps.append)
        assert bool(steps) != finished
        assert content(prefix) == content(tmp_path / "whole")
        assert sorted(path.name for path in tmp_path.glob("*data*")) == [
            "data.bin",
            "data.idx",
            "data.json",
        ]
        if died == 0:
            break
        assert died == -signal.SIGKILL
        for left in tmp_path.glob("data.*"):
            left.unlink()
    # The state, two files, the manifest, and what the folder held.
    assert number > 6


def failure(file: Path, tokenizer: Path, **changes: object) -> UserError:
    options = replace(Options((file,), file.parent / "data", tokenizer), **changes)  # type: ignore[arg-type]
    with pytest.raises(UserError) as caught:
        tokenize(options)
    assert not list(file.parent.glob("*data*")), "nothing is left, half-written or not"
    return caught.value


def test_a_wrong_key_names_the_keys_that_are_there(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"title": "t", "content": "c"}\n')
    error = failure(tmp_path / "a.jsonl", tokenizer_folder)
    assert "a.jsonl:1: no key 'text' in this row (its keys: content, title)" in error.message
    assert "--key" in (error.hint or "")


def test_text_that_is_not_utf8_names_its_line(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n\n{"text": "caf\xe9"}\n')
    error = failure(tmp_path / "a.jsonl", tokenizer_folder)
    assert "a.jsonl:3: byte 14 of the line is not UTF-8 (0xe9)" in error.message


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_that_ends_early_is_refused(
    tmp_path: Path, tokenizer_folder: Path, suffix: str
) -> None:
    lines = "".join(json.dumps({"text": str(i**7)}) + "\n" for i in range(2000)).encode()
    whole = gzip.compress(lines) if suffix == ".gz" else zstandard.compress(lines)
    file = tmp_path / f"a.jsonl{suffix}"
    file.write_bytes(whole[: len(whole) // 2])
    assert "damaged or cut short" in failure(file, tokenizer_folder).message


def test_half_a_surrogate_pair_names_its_place(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "ab\\ud83d"}\n')
    error = failure(tmp_path / "a.jsonl", tokenizer_folder)
    assert "half a surrogate pair (\\ud83d) at character 3" in error.message


def test_a_file_without_text_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    error = failure(tmp_path / "a.jsonl", tokenizer_folder)
    assert "there is no document with a token in it" in error.message


def test_a_dataset_is_not_overwritten(
    tmp_path: Path, tokenizer_folder: Path, write_texts: Callable[..., Path]
) -> None:
    options = Options((write_texts(["the"]),), tmp_path / "data", tokenizer_folder)
    manifest = tokenize(options)
    assert tokenize(options) == manifest
    before = content(options.prefix)
    with pytest.raises(UserError, match=r"data\.json exists already"):
        tokenize(replace(options, append_eod=True))
    name_beside(options.prefix, ".json").unlink()
    with pytest.raises(UserError, match=r"data\.bin exists already"):
        tokenize(options)
    assert content(options.prefix)[:2] == before[:2]


def test_a_full_disk_keeps_what_is_done(
    tmp_path: Path, tokenizer_folder: Path, write_texts: Callable[..., Path]
) -> None:
    """A limit on the size of files fails as a full disk does, in another process."""
    file = write_texts(some_texts(3000))
    flags = ("--tokenizer", tokenizer_folder, "--workers", 1)
    command = ("prepare", "tokenize", file, *flags, "--output", tmp_path / "data")
    full = alignctl(*command, prefix=("prlimit", "--fsize=20000"))
    assert full.code == 1, full.text
    assert full.err.count("error:") == 1
    assert "could not be written: File too large; what is done is kept" in full.err
    assert "goes on from there" in full.err
    assert not list(tmp_path.glob("data.*"))
    done = alignctl(*command)
    assert done.code == 0, done.text
    tokenize(Options((file,), tmp_path / "whole", tokenizer_folder))
    assert content(tmp_path / "data") == content(tmp_path / "whole")


def test_an_index_of_another_dataset_is_refused(
    tmp_path: Path, tokenizer_folder: Path, write_texts: Callable[..., Path]
) -> None:
    tokenize(Options((write_texts(["the moth"]),), tmp_path / "a", tokenizer_folder))
    tokenize(Options((write_texts(["that"]),), tmp_path / "b", tokenizer_folder))
    (tmp_path / "a.idx").write_bytes((tmp_path / "b.idx").read_bytes())
    with pytest.raises(UserError, match=r"6 tokens, where a\.idx counts 3"):
        IndexedTokens.open(tmp_path / "a")


def test_an_index_that_is_cut_short_is_refused(
    tmp_path: Path, tokenizer_folder: Path, write_texts: Callable[..., Path]
) -> None:
    tokenize(Options((write_texts(["the moth"]),), tmp_path / "a", tokenizer_folder))
    (tmp_path / "a.idx").write_bytes((tmp_path / "a.idx").read_bytes()[:-1])
    with pytest.raises(UserError, match="cut short"):
        IndexedTokens.open(tmp_path / "a")


def test_documents_read_as_megatron_reads_them(
    tmp_path: Path, tokenizer_folder: Path, write_texts: Callable[..., Path]
) -> None:
    tokenize(Options((write_texts(some_texts(50)),), tmp_path / "a", tokenizer_folder))
    ours, theirs = IndexedTokens.open(tmp_path / "a"), IndexedDataset(str(tmp_path / "a"))
    assert ours.document_lengths().tolist() == theirs.sequence_lengths.tolist()
    for number in range(len(theirs)):
        assert np.array_equal(ours.document(number), theirs[number])
