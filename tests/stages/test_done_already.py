"""What is done already, what somebody else is doing, and what would be written into its input."""

import shutil
from pathlib import Path

import pytest

from tests import commands, tiny
from tests.stages.conftest import Alignctl, snapshot

HF2MG = ("convert-hf2mg", "--verify", "none", "--load")
MG2HF = ("convert-mg2hf", "--verify", "none", "--load")


@pytest.fixture
def model(workspace: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Llama, to be changed."""
    shutil.copytree(workspace / "hf", tmp_path / "model")
    return tmp_path / "model"


def test_a_conversion_that_is_done_is_left_as_it_is(
    alignctl: Alignctl, model: Path, tmp_path: Path
) -> None:
    mg, hf = tmp_path / "mg", tmp_path / "hf"
    for command, save in (((*HF2MG, model), mg), ((*MG2HF, mg), hf)):
        first = alignctl(*command, "--save", save)
        assert first.code == 0, first.text
        before = snapshot(save)
        again = alignctl(*command, "--save", save)
        assert (again.code, again.out) == (0, first.out)
        assert f"{save} is there already, whole and from the same: nothing is to do" in again.err
        assert snapshot(save) == before


def test_another_conversion_to_the_same_folder_is_refused(
    alignctl: Alignctl, model: Path, tmp_path: Path
) -> None:
    command = (*HF2MG, model, "--save", tmp_path / "mg")
    assert alignctl(*command).code == 0
    for flags in (("--dtype", "bf16"), ("--tp", "2", "--format", "legacy"), ("--verify", "fast")):
        outcome = alignctl(*command, *flags)
        assert outcome.code == 2
        assert f"{tmp_path / 'mg'} exists already and is not empty" in outcome.err
    (model / "generation_config.json").write_text("{}")
    assert "exists already" in alignctl(*command).err


def test_a_conversion_that_was_damaged_since_is_told_by_its_file(
    alignctl: Alignctl, model: Path, tmp_path: Path
) -> None:
    command = (*HF2MG, model, "--save", tmp_path / "mg")
    assert alignctl(*command).code == 0
    file = next((tmp_path / "mg/release").glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    outcome = alignctl(*command)
    assert outcome.code == 2
    assert f"error: {file}: its checksum differs from the one in alignctl.json" in outcome.err


@pytest.mark.ci
def test_the_second_of_two_waits_and_finds_it_done(workspace: Path, tmp_path: Path) -> None:
    save = tmp_path / "mg"
    command = (*HF2MG, workspace / "hf", "--save", save)
    first = commands.start(*command, "--verify", "full")
    commands.wait_until((tmp_path / ".mg.lock").exists, first)
    second = commands.start(*command, "--verify", "full", "--wait")
    both = [commands.finish(each) for each in (first, second)]
    assert [each.code for each in both] == [0, 0], both[0].text + both[1].text
    assert f"{save} is being written by another command (process {first.pid}" in both[1].err
    assert f"{save} is there already, whole and from the same" in both[1].err


@pytest.mark.parametrize(
    "line",
    [
        "convert-hf2mg --load hf --save hf/mg",
        "prepare clean rows --output rows/clean",
        "prepare shard rows --output rows/a/b",
        "prepare tokenize rows --tokenizer hf --output rows/data",
        "prepare alpaca rows --output rows/alpaca",
        "sft --preset tiny-llama --load hf --data rows --output rows/run",
        "sft --preset tiny-llama --load hf --data rows --output hf/run --dry-run",
        "generate --load hf --data rows --output rows/answers.jsonl",
    ],
)
def test_nothing_is_written_into_what_is_read(
    alignctl: Alignctl, workspace: Path, line: str
) -> None:
    rows = workspace / "rows"
    rows.mkdir(exist_ok=True)
    shutil.copy(workspace / "train.jsonl", rows / "train.jsonl")
    before = snapshot(workspace)
    outcome = alignctl(*line.split())
    assert outcome.code == 2, outcome.text
    assert ", which is read\n" in outcome.err
    assert snapshot(workspace) == before


@pytest.mark.parametrize(
    ("line", "other"),
    [
        ("prepare clean texts.jsonl", "--min-characters 2"),
        ("prepare shard texts.jsonl", "--compress none"),
        ("prepare alpaca alpaca.jsonl", "--dev-fraction 0.5"),
    ],
)
def test_rows_that_are_prepared_are_left_as_they_are(
    alignctl: Alignctl, tmp_path: Path, line: str, other: str
) -> None:
    """The same command finds them done; another one, other input or a damaged file is refused."""
    out = tmp_path / "out"
    texts = tiny.write_rows(tmp_path / "texts.jsonl", [{"text": f"text {n}"} for n in range(9)])
    rows = [{"instruction": f"{n}?", "input": "", "output": f"{n}"} for n in range(99)]
    tiny.write_rows(tmp_path / "alpaca.jsonl", rows)
    *words, name = line.split()
    command = (*words, tmp_path / name, "--output", out)
    assert alignctl(*command).code == 0
    before = snapshot(out)
    again = alignctl(*command)
    assert again.code == 0, again.text
    assert f"{out} is complete already: nothing is left to do" in again.err
    assert snapshot(out) == before
    assert "exists already" in alignctl(*command, *other.split()).err
    file = next(out.rglob("*train*"))
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    assert "exists already" in alignctl(*command).err
    file.write_bytes(content)
    with (tmp_path / name).open("a") as stream:
        stream.write(texts.read_text().splitlines()[0] + "\n")
    assert "exists already" in alignctl(*command).err
