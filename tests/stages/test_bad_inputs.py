"""What users get wrong is refused before a process is started, in words, and nothing is written.

Every case goes through the command line; the words are those that the user reads.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests import commands, tiny
from tests.stages.conftest import Alignctl, refused, snapshot

SFT = {"--preset": "tiny.yaml", "--load": "hf", "--data": "train.jsonl", "--output": "new"}


def sft(changes: Mapping[str, object], *overrides: str) -> list[object]:
    """The command of a run that would work, but for the changes."""
    flags = [word for pair in {**SFT, **changes}.items() for word in pair]
    return ["sft", *flags, *overrides]


@pytest.mark.parametrize(
    ("changes", "overrides", "words"),
    [
        ({"--preset": "llama2-7"}, [], ["no preset 'llama2-7' (did you mean llama2-7b?)"]),
        ({"--preset": "tiny.yml"}, [], ["tiny.yml: cannot be read: No such file"]),
        (
            {},
            ["optimzer.lr=1"],
            ["override 'optimzer.lr=1': unknown key 'optimzer.lr'; did you mean 'optimizer.lr'?"],
        ),
        ({}, ["lr=1e-5"], ["unknown key 'lr'; did you mean 'optimizer.lr'?"]),
        ({}, ["sft.optimizer.lr=1"], ["keys are relative", "did you mean 'optimizer.lr=1'?"]),
        ({}, ["optimizer.lr", "1"], ["'optimizer.lr' is not of the form section.key=value"]),
        ({}, ["train.steps=ten"], ["train.steps must be an integer; found 'ten'"]),
        ({}, ["batch.micro_batch_size=0"], ["must be at least 1; found 0"]),
        ({"--nproc": 3}, ["parallel.tp=3"], ["num_attention_heads 4 is not divisible by", "tp 3"]),
        ({"--nproc": 4}, ["parallel.tp=4"], ["num_query_groups 2 is not divisible by", "tp 4"]),
        (
            {"--nproc": 3},
            ["parallel.tp=2"],
            ["--nproc 3: 3 processes", "not a multiple of parallel.tp 2 x parallel.pp 1 = 2"],
        ),
        (
            {},
            ["batch.global_batch_size=6"],
            ["6 is not divisible by batch.micro_batch_size 2 x 2 data-parallel ranks = 4"],
        ),
        ({}, ["batch.seq_length=256"], ["256 exceeds model.max_position_embeddings 128"]),
        ({}, ["train.epochs=1"], ["both of train.steps and train.epochs set: give one"]),
        ({"--load": "hff"}, [], ["--load hff does not exist; did you mean hf?"]),
        ({"--data": "trian.jsonl"}, [], ["does not exist; did you mean train.jsonl?"]),
        ({"--tokenizer": "tok"}, [], ["--tokenizer tok does not exist"]),
        ({"--load": "train.jsonl"}, [], ["train.jsonl: a folder was expected, this is a file"]),
        (
            {"--load": ".", "--output": "../new"},
            [],
            [".: not a model", "hint: did you mean bloom?"],
        ),
        (
            {"--preset": "bloom.yaml"},
            [],
            [
                "preset bloom.yaml and hf describe different models",
                "family: bloom != llama2",
                "hint: choose the preset of this model",
            ],
        ),
        ({"--output": "train.jsonl"}, [], ["--output train.jsonl is a file"]),
        ({"--output": "train.jsonl/run"}, [], ["cannot prepare the run folder", "Not a directory"]),
        (
            {"--output": "hf"},
            [],
            ["--output hf is not a run folder, and it is not empty", "nothing was changed"],
        ),
        ({"--output": "."}, [], [". is not a run folder, and it is not empty: it holds bloom"]),
        ({}, ["data.validation_fraction=0.99"], ["of 40 documents leaves nothing to train on"]),
        ({"--master-port": 99999}, [], ["--master-port", "less than or equal to 65535"]),
        ({"--node-rank": 1}, [], ["--node-rank 1 needs more than one node (--nnodes)"]),
        (
            {"--nnodes": 2, "--node-rank": 1, "--master-addr": "localhost"},
            ["batch.global_batch_size=8"],
            ["localhost"],
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_named(
    alignctl: Alignctl,
    workspace: Path,
    changes: dict[str, object],
    overrides: list[str],
    words: list[str],
) -> None:
    before = snapshot(workspace)
    said = refused(alignctl(*sft(changes, *overrides)))
    for word in words:
        assert word in said
    assert snapshot(workspace) == before


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("micro_batch_size: 2", "microbatch_size: 2", [":26: unknown key 'batch.microbatch_size'"]),
        ("steps: 4", "steps: many", [": train.steps must be an integer; found 'many'"]),
        ("sft:", "sftt:", [":17: unknown key 'sftt'; did you mean 'sft'?"]),
        ("tp: 1", "tp: [1", ["not valid YAML"]),
        ("lr: 0.01", "lr: 0.01\n    lr: 0.02", ["key 'sft.optimizer.lr' was already set on line"]),
        ("family: llama2", "family: gpt2", ["model.family must be one of llama2, bloom"]),
    ],
)
def test_a_mistake_in_a_preset_file_is_named_with_its_line(
    alignctl: Alignctl, workspace: Path, tmp_path: Path, old: str, new: str, words: list[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text((workspace / "tiny.yaml").read_text().replace(old, new, 1))
    said = refused(alignctl(*sft({"--preset": file})))
    assert f"{file}:" in said
    for word in words:
        assert word in said
    assert not (workspace / "new").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"query": "a", "response": "b"}\n{"query": "a",\n', [":2: not valid JSON", "column 15"]),
        ('{"question": "a", "answer": "b"}\n', [":1: the keys of this row (answer, question)"]),
        (
            '{"query": "a", "response": "b"}\n{"instruction": "a", "output": "b"}\n',
            [":2: no key 'query' in this row (its keys: instruction, output)"],
        ),
        ('{"query": "a", "response": 3}\n', [":1: response is a number, where text is expected"]),
        ('["a", "b"]\n', [":1: a JSON list, where an object like {...} is expected"]),
        ("", ["nothing to learn from: there is no row in it"]),
        ('{"query": "a", "response": ""}\n', ["1 rows read, 1 dropped without an assistant token"]),
    ],
)
def test_a_mistake_in_the_data_is_named_with_its_line_and_takes_the_new_folder_back(
    alignctl: Alignctl, workspace: Path, tmp_path: Path, text: str, words: list[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    before = snapshot(workspace)
    said = refused(alignctl(*sft({"--data": file})))
    assert said.startswith(f"error: {file}:")
    for word in words:
        assert word in said
    assert snapshot(workspace) == before
    assert not (workspace / "new").exists()


def test_a_folder_without_data_and_a_file_of_another_kind_are_refused(
    alignctl: Alignctl, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    assert "no training file in this folder" in refused(
        alignctl(*sft({"--data": tmp_path / "data"}))
    )
    (tmp_path / "rows.csv").touch()
    assert "rows are read from files that end in .jsonl" in refused(
        alignctl(*sft({"--data": tmp_path / "rows.csv"}))
    )


def test_files_that_may_not_be_read_are_refused(workspace: Path, tmp_path: Path) -> None:
    """As a user would run it: root may read everything, so it gives that right up first."""
    rows = tiny.write_rows(tmp_path / "rows.jsonl")
    rows.chmod(0)
    model = shutil.copytree(workspace / "hf", tmp_path / "hf")
    (model / "model.safetensors").chmod(0)
    powers = "-dac_override,-dac_read_search"
    prefix = ["setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}"]
    prefix = prefix if os.geteuid() == 0 else []

    flags = {"--preset": workspace / "tiny.yaml", "--load": workspace / "hf", "--data": rows}
    output = {"--output": tmp_path / "new"}
    said = refused(commands.alignctl(*sft(flags | output), prefix=prefix))
    assert f"'--data': path '{rows}' is not readable" in said

    arguments = ("convert-hf2mg", "--load", model, "--save", tmp_path / "mg")
    said = refused(commands.alignctl(*arguments, prefix=prefix))
    assert f"{model}/model.safetensors: cannot be read: permission denied" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "rows.jsonl"]


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused(
    alignctl: Alignctl, tmp_path: Path
) -> None:
    tokenizer = tiny.write_tokenizer(tmp_path / "tokenizer", num_extra=5)
    said = refused(alignctl(*sft({"--tokenizer": tokenizer})))
    assert "5 token ids exceed the model's embedding of 261 rows ('<extra_0>' = 261," in said
    assert "hint: grow the model's vocabulary to it: extra_vocab_size=5" in said


def test_a_model_without_a_tokenizer_asks_for_one(
    alignctl: Alignctl, workspace: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(workspace / "hf", tmp_path / "hf")
    (model / "tokenizer.json").unlink()
    said = refused(alignctl(*sft({"--load": model})))
    assert f"{model}: no tokenizer.json" in said
    assert "--tokenizer DIR" in said


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("num_hidden_layers", 3, "9 of 30 tensors are missing, the first is 'model.layers.2"),
        ("vocab_size", 300, "shape [261, 32], but the model's config asks for [300, 32]"),
        ("model_type", "gpt_neox", "model_type = 'gpt_neox' is not supported"),
        ("attention_bias", True, "attention_bias = True is not part of the Llama 2 family"),
    ],
)
def test_a_config_that_is_not_of_these_weights_is_refused(
    alignctl: Alignctl, workspace: Path, tmp_path: Path, key: str, value: object, words: str
) -> None:
    model = shutil.copytree(workspace / "hf", tmp_path / "hf")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {key: value}))
    said = refused(alignctl("convert-hf2mg", "--load", model, "--save", tmp_path / "mg"))
    assert words in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]
