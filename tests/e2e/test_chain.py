"""From Hugging Face and back: what the README promises, with models of some kilobytes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from alignctl.data.tokenizer import load_tokenizer
from alignctl.run_folder import RunFolder
from tests import commands, tiny

PROMPT = "\n\nHuman: 1 + 3?\n\nAssistant: "


def run(*arguments: object) -> str:
    """A command that has to work; returns what it prints as data."""
    outcome = commands.alignctl(*arguments)
    assert outcome.code == 0, outcome.text
    return outcome.out


def train(workspace: Path, load: Path, output: Path, *overrides: str) -> RunFolder:
    data = ["--preset", workspace / "tiny.yaml", "--data", workspace / "train.jsonl"]
    assert run("sft", *data, "--load", load, "--output", output, *overrides) == f"{output}\n"
    return RunFolder(output)


def losses(folder: RunFolder) -> list[float]:
    rows = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]


def generate(model: Path) -> list[int]:
    """The tokens that transformers continues the prompt with, greedily."""
    from transformers import AutoModelForCausalLM

    network: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    encoding = load_tokenizer(model).encode_batch([PROMPT])[0]
    prompt = torch.tensor([encoding.ids])
    with torch.no_grad():
        tokens: Tensor = network.generate(prompt, max_new_tokens=8, do_sample=False)
    return tokens[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize("family", ["llama-gqa", pytest.param("bloom", marks=pytest.mark.ci)])
def test_a_model_goes_to_megatron_is_trained_and_comes_back(
    tmp_path: Path, family: tiny.Family
) -> None:
    tiny.write_model(tmp_path / "hf", family)
    tiny.write_rows(tmp_path / "train.jsonl")
    layout = "parallel.tp=2" if family == "bloom" else "parallel.pp=2"
    tiny.write_preset(tmp_path / "tiny.yaml", family)

    mg, out = tmp_path / "mg", tmp_path / "out"
    preset = ["--preset", tmp_path / "tiny.yaml"]
    assert run("convert-hf2mg", *preset, "--load", tmp_path / "hf", "--save", mg) == f"{mg}\n"
    trained = train(tmp_path, mg, tmp_path / "run", layout, "train.steps=8")
    assert run("convert-mg2hf", "--load", trained.path, "--save", out) == f"{out}\n"

    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "hf", out))
    assert {name: tensor.shape for name, tensor in after.items()} == {
        name: tensor.shape for name, tensor in before.items() if name in after
    }
    assert not any(torch.equal(after[name], before[name]) for name in after if "bias" not in name)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (tmp_path / "hf" / name).read_bytes()
    assert losses(trained)[-1] < losses(trained)[0]
    text = load_tokenizer(out).decode(generate(out))
    assert text


@pytest.mark.ci
def test_a_run_starts_from_a_hugging_face_folder_or_from_another_run_at_any_layout(
    tmp_path: Path,
) -> None:
    tiny.write_model(tmp_path / "hf")
    tiny.write_rows(tmp_path / "train.jsonl")
    tiny.write_preset(tmp_path / "tiny.yaml")

    first = train(tmp_path, tmp_path / "hf", tmp_path / "first")
    second = train(tmp_path, first.path, tmp_path / "second", "parallel.tp=2", "train.steps=3")
    result = first.read_result()
    assert result is not None
    assert second.latest_step() == 3
    rows = [json.loads(line) for line in second.metrics.read_text().splitlines()]
    starts_at = next(row["loss"] for row in rows if row["kind"] == "validation")
    assert starts_at == pytest.approx(result["validation"]["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_run_starts_from_a_legacy_checkpoint_of_another_layout_and_foreign_hands(
    tmp_path: Path,
) -> None:
    """Cut for PP 2, without our manifest: trained at TP 2 as from the Hugging Face folder."""
    tiny.write_model(tmp_path / "hf")
    tiny.write_rows(tmp_path / "train.jsonl")
    tiny.write_preset(tmp_path / "tiny.yaml")
    flags = ["--format", "legacy", "--pp", "2"]
    run("convert-hf2mg", "--load", tmp_path / "hf", "--save", tmp_path / "old", *flags)
    (tmp_path / "old/release/alignctl.json").unlink()
    shutil.rmtree(tmp_path / "old/release/hf")
    overrides = ("parallel.tp=2", "train.steps=3", f"tokenizer={tmp_path / 'hf'}")
    legacy = train(tmp_path, tmp_path / "old", tmp_path / "legacy", *overrides)
    same = train(tmp_path, tmp_path / "hf", tmp_path / "same", *overrides)
    assert losses(legacy) == losses(same)
    run("convert-mg2hf", "--load", legacy.path, "--save", tmp_path / "out")
    assert generate(tmp_path / "out")
