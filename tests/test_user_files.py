import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from alignctl.checkpoints.formats import mcore_index, safetensors_file, zero
from alignctl.checkpoints.pickles import torch_file
from alignctl.corpus.indexed import IndexedTokens
from alignctl.errors import RunError, UserError
from alignctl.evaluation.mt_bench import replies
from alignctl.evaluation.mt_bench.questions import read_turns
from alignctl.reporting.page.recorded_run import rows_of
from alignctl.user_files import opened, read_bytes, read_json, read_text, reading, refuse_hole


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    """Opening a pipe in the usual way waits for a writer; reading /dev/zero never ends."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    for path, kind in (
        (tmp_path / "pipe", "a pipe"),
        (tmp_path / "link", "a device"),
        (Path("/dev/null"), "a device"),
        (tmp_path, "a folder"),
        (tmp_path / "socket", "cannot be read: No such device"),
    ):
        with pytest.raises(UserError, match=kind):
            read_text(path)


def test_a_larger_file_than_any_of_its_kind_is_refused(tmp_path: Path) -> None:
    """A sparse file of a terabyte takes no disk, but all memory when it is read."""
    file = tmp_path / "sparse"
    with file.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(UserError, match="larger than the 1,000 bytes"):
        read_bytes(file, 1000)
    with opened(file) as stream:
        assert stream.read(3) == bytes(3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not valid JSON: .*line 1, column 2"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number in it has more than 4,300 digits"),
        (b'{"a":\n"\xff"}', "not UTF-8 text: byte 0xff on line 2"),
        (b"[1]", "a JSON object is expected, found list"),
        (b"", "not valid JSON"),
    ],
)
def test_what_is_no_json_object_is_told_with_its_file(
    tmp_path: Path, content: bytes, words: str
) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"config\.json: {words}"):
        read_json(file)


def test_whatever_is_raised_while_reading_becomes_one_message() -> None:
    for error, words in (
        (KeyError("gpu"), "rows:3: 'gpu' is missing in it, or is not known"),
        (TypeError("no\nlist"), "rows:3: cannot be read: no list"),
        (OverflowError(), "rows:3: cannot be read: OverflowError"),
        (MemoryError(), "rows:3: takes more memory than there is"),
    ):
        with pytest.raises(UserError) as caught, reading("rows:3", "mend it"):
            raise error
        assert (caught.value.message, caught.value.hint) == (words, "mend it")
        assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [RunError("full"), ModuleNotFoundError("vllm")])
def test_what_is_explained_already_passes(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, reading("rows:3"):
        raise error
    assert caught.value is error


def test_an_object_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(json.dumps({"a": [1, "\u00e9"]}))
    assert read_json(tmp_path / "a") == {"a": [1, "\u00e9"]}


def _reply(file: Path) -> None:
    with replies.open_cache(file):
        pass


def _peeked(file: Path) -> None:
    with replies.peek(file):
        pass


READERS: dict[str, Callable[[Path], object]] = {
    "model.safetensors": safetensors_file.read,
    "pytorch_model.bin": torch_file.read,
    ".metadata": lambda file: mcore_index.read_all(file.parent),
    "latest": lambda file: zero.find(file.parent),
    "judge.jsonl": _reply,
    "peeked.jsonl": _peeked,
    "metrics.jsonl": lambda file: list(rows_of(file, [])),
    "data.idx": lambda file: IndexedTokens.open(file.with_suffix("")),
    "answers.jsonl": lambda file: list(read_turns(file)),
}
"""Of files of every kind that have readers of their own."""


@pytest.mark.parametrize("kind", ["pipe", "device", "sparse"])
@pytest.mark.parametrize("name", READERS)
def test_every_reader_refuses_what_never_ends(tmp_path: Path, name: str, kind: str) -> None:
    file = tmp_path / name
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    else:
        with file.open("wb") as stream:
            stream.truncate(1 << 40)
    if name == "data.idx":
        file.with_suffix(".bin").touch()
    if name == "latest" and kind != "sparse":
        assert zero.find(tmp_path) is None  # a folder of another kind, perhaps
        return
    with pytest.raises(UserError, match=re.escape(str(file))):
        READERS[name](file)


@pytest.mark.parametrize("suffix", [".parquet", ".json", ".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize("start", [b"", b'{"prompt": "a", "response": "b"}\n'])
def test_rows_with_a_terabyte_of_nothing_are_refused_at_once(
    tmp_path: Path, suffix: str, start: bytes
) -> None:
    file = tmp_path / f"rows{suffix}"
    file.write_bytes(start)
    os.truncate(file, 1 << 40)
    with opened(file) as stream, pytest.raises(UserError) as caught:
        refuse_hole(file, stream)
    assert "nothing was ever written into it" in caught.value.message


def test_holes_of_a_page_and_no_holes_are_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    with file.open("wb") as stream:
        stream.write(b"{}\n")
        stream.seek(1 << 20)
        stream.write(b"{}\n")
    with opened(file) as stream:
        refuse_hole(file, stream)
        assert stream.read(3) == b"{}\n"
