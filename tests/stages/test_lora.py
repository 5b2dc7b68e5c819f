"""Runs with adapters end to end: what they leave behind, and what later stages make of it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignctl.run_folder import RunFolder
from tests import commands, tiny
from tests.commands import Outcome
from tests.e2e.test_resume import rows
from tests.stages.conftest import Alignctl, refused, snapshot

pytestmark = pytest.mark.ci

LORA = ("lora.rank=4", "lora.targets=[q_proj, v_proj, mlp]", "lora.dropout=0.05")
TOKENS = torch.arange(60).reshape(2, 30)


def command(workspace: Path, stage: str, load: Path, output: Path, *overrides: str) -> list[object]:
    """A run of the workspace's preset and data."""
    data = workspace / ("train.jsonl" if stage == "sft" else "pairs.jsonl")
    flags = ["--preset", workspace / "tiny.yaml", "--load", load, "--data", data]
    return [stage, *flags, "--output", output, *overrides]


@pytest.fixture(scope="module")
def tuned(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A finished run of `sft` with adapters, on a base of its own, at TP 2."""
    folder = tmp_path_factory.mktemp("lora")
    base = shutil.copytree(workspace / "hf", folder / "base")
    layout = ("parallel.tp=2", "parallel.sequence_parallel=true")
    outcome = commands.alignctl(*command(workspace, "sft", base, folder / "run", *LORA, *layout))
    assert outcome.code == 0, outcome.text
    return folder / "run", outcome


def test_a_run_says_what_is_trained_and_keeps_only_that(tuned: tuple[Path, Outcome]) -> None:
    """Rank 4 of q 32x32, v 16x32, gate, up 64x32 and down 32x64, twice: 3,200 numbers."""
    run, outcome = tuned
    assert "on q_proj, v_proj, gate_proj, up_proj, down_proj: 3,200 parameters" in outcome.err
    start, end = rows(RunFolder(run), "validation")
    assert end["loss"] < start["loss"]
    checkpoint = run / "checkpoints/iter_0000004"
    told = json.loads((checkpoint / "alignctl.json").read_text())["adapted"]
    assert told["base"]["path"] == str(run.parent / "base")
    assert told["base"]["files"].keys() == {"model.safetensors"}


def test_the_merged_model_is_the_base_with_the_adapters_in_peft(
    tuned: tuple[Path, Outcome], tmp_path: Path, alignctl: Alignctl
) -> None:
    run, base = tuned[0], tuned[0].parent / "base"
    for flags, name in (((), "merged"), (("--adapter-only",), "adapters")):
        where = ("--load", run, "--save", tmp_path / name, "--base", "org/tiny")
        outcome = alignctl("convert-mg2hf", *where, *flags)
        assert outcome.code == 0, outcome.text
        card = (tmp_path / name / "README.md").read_text()
        assert card.startswith("---\nbase_model: org/tiny\nlibrary_name: ")
        assert "| `lora.rank` | " in card
    assert {file.name for file in (tmp_path / "adapters").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    told = json.loads((tmp_path / "adapters/adapter_config.json").read_text())
    assert (told["lora_dropout"], told["base_model_name_or_path"]) == (0.05, "org/tiny")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        before = plain(TOKENS).logits
        adapted = PeftModel.from_pretrained(plain, tmp_path / "adapters")(TOKENS).logits
        torch.testing.assert_close(merged(TOKENS).logits, adapted, rtol=0, atol=1e-5)
    assert (adapted - before).abs().max() > 0.1


def test_adapters_that_are_written_are_left_as_they_are(
    tuned: tuple[Path, Outcome], tmp_path: Path, alignctl: Alignctl
) -> None:
    save = tmp_path / "adapters"
    command = ("convert-mg2hf", "--load", tuned[0], "--save", save, "--adapter-only")
    first = alignctl(*command)
    before = snapshot(save)
    again = alignctl(*command)
    assert (again.code, again.out) == (0, first.out), again.text
    assert f"{save} is there already, whole and from the same: nothing is to do" in again.err
    assert snapshot(save) == before
    assert f"{save} exists already" in refused(alignctl(*command[:-1]))
    weights = save / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert f"{save} exists already" in refused(alignctl(*command))


@pytest.mark.slow
def test_later_stages_read_a_run_with_adapters_as_any_other(
    workspace: Path, tuned: tuple[Path, Outcome], tmp_path: Path
) -> None:
    """DPO on the same four pairs in each step, with adapters of its own on top of those."""
    rights = [(f"{number} + 1?", f"{number + 1}", f"{number}") for number in range(4)]
    pairs = [{"prompt": a, "chosen": b, "rejected": c} for a, b, c in rights]
    overrides = ("lora.rank=2", "data.validation_fraction=0.0", "optimizer.lr=0.005")
    flags = command(workspace, "dpo", tuned[0], tmp_path / "dpo", *overrides, "train.steps=8")
    flags[flags.index("--data") + 1] = tiny.write_pairs(tmp_path / "four.jsonl", pairs)
    outcome = commands.alignctl(*flags)
    assert outcome.code == 0, outcome.text
    steps = rows(RunFolder(tmp_path / "dpo"), "train")
    assert steps[0]["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert steps[-1]["loss"] < 0.69
    merged = commands.alignctl(
        "convert-mg2hf", "--load", tmp_path / "dpo", "--save", tmp_path / "hf"
    )
    assert merged.code == 0, merged.text


@pytest.mark.slow
def test_a_reward_model_with_adapters_has_a_head_of_its_own(
    workspace: Path, tmp_path: Path, alignctl: Alignctl
) -> None:
    run = tmp_path / "reward"
    outcome = commands.alignctl(*command(workspace, "reward", workspace / "hf", run, "lora.rank=4"))
    assert outcome.code == 0, outcome.text
    for flags, name in (((), "merged"), (("--adapter-only",), "adapters")):
        outcome = alignctl("convert-mg2hf", "--load", run, "--save", tmp_path / name, *flags)
        assert outcome.code == 0, outcome.text
    kind = AutoModelForSequenceClassification
    merged = kind.from_pretrained(tmp_path / "merged")
    plain = kind.from_pretrained(workspace / "hf", num_labels=1)
    merged.config.pad_token_id = plain.config.pad_token_id = 3
    adapted = PeftModel.from_pretrained(plain, tmp_path / "adapters")
    with torch.no_grad():
        theirs = adapted(TOKENS).logits
        torch.testing.assert_close(merged(TOKENS).logits, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("stage", "zero_stage"),
    [
        pytest.param("sft", 3, marks=pytest.mark.slow),
        pytest.param("reward", 2, marks=pytest.mark.slow),
        pytest.param("dpo", 1, marks=pytest.mark.slow),
    ],
)
def test_deepspeed_trains_the_same_adapters_and_writes_the_same_model(
    stage: str, zero_stage: int, workspace: Path, tmp_path: Path, alignctl: Alignctl
) -> None:
    """From the same A and B as Megatron, the same losses and, merged or not, the same weights."""
    layouts = {
        "megatron": ("parallel.tp=2",),
        "deepspeed": ("engine=deepspeed", f"deepspeed.zero_stage={zero_stage}"),
    }
    settings = ("lora.rank=4", "optimizer.eps=1e-4", "data.validation_fraction=0.2")
    losses, weights = {}, {}
    for engine, layout in layouts.items():
        run = tmp_path / engine
        start = command(workspace, stage, workspace / "hf", run, *settings, *layout)
        outcome = commands.alignctl(*start)
        assert outcome.code == 0, outcome.text
        losses[engine] = [row["loss"] for row in rows(RunFolder(run), "train", "validation")]
        for flags, name in (((), "merged"), (("--adapter-only",), "adapters")):
            folder = tmp_path / f"{engine}-{name}"
            outcome = alignctl("convert-mg2hf", "--load", run, "--save", folder, *flags)
            assert outcome.code == 0, outcome.text
        merged = load_file(tmp_path / f"{engine}-merged" / "model.safetensors")
        adapters = load_file(tmp_path / f"{engine}-adapters" / "adapter_model.safetensors")
        weights[engine] = merged | adapters
    assert losses["deepspeed"] == pytest.approx(losses["megatron"], rel=1e-5)
    assert len(losses["deepspeed"]) == 6
    torch.testing.assert_close(weights["deepspeed"], weights["megatron"], rtol=0, atol=1e-5)
    again = ("convert-hf2mg", "--load", tmp_path / "deepspeed", "--save", tmp_path / "mg")
    outcome = alignctl(*again)
    assert outcome.code == 0, outcome.text
    assert "PEFT llama2" in outcome.err


def test_a_base_that_is_gone_or_another_one_is_named(
    workspace: Path, tuned: tuple[Path, Outcome], tmp_path: Path, alignctl: Alignctl
) -> None:
    run, base = tuned[0], tuned[0].parent / "base"
    convert = ("convert-mg2hf", "--load", run, "--save", tmp_path / "hf")
    moved = base.rename(base.with_name("moved"))
    said = refused(alignctl(*convert))
    assert f"its adapters were trained on the model in {base}, which is not there" in said
    shutil.copytree(moved, base)
    file = base / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert f"the model that was in {base}, and the weights there are" in refused(alignctl(*convert))
    file.write_bytes(content[:-4])
    assert alignctl(*convert).code == 2
    shutil.rmtree(base)
    moved.rename(base)
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("lora.targets=query_key_value",), "lora.targets names 'query_key_value', which llama2"),
        (("lora.rank=32",), "lora.rank 32 is not less than model.hidden_size 32"),
        (("lora.rank=0",), "lora.rank must be at least 1; found 0"),
        (("lora.dropout=1.0",), "lora.dropout must be less than 1; found 1.0"),
    ],
)
def test_impossible_adapters_are_refused(
    workspace: Path, tmp_path: Path, alignctl: Alignctl, overrides: tuple[str, ...], said: str
) -> None:
    flags = command(workspace, "sft", workspace / "hf", tmp_path / "run", *overrides)
    assert said in refused(alignctl(*flags))


def test_adapters_of_a_whole_model_are_refused(
    finished: Path, tmp_path: Path, alignctl: Alignctl
) -> None:
    flags = ("--load", finished, "--save", tmp_path / "hf", "--adapter-only")
    assert "this is a whole model, without adapters" in refused(alignctl("convert-mg2hf", *flags))
    weights = finished.parent / "hf"
    based = ("--load", weights, "--save", tmp_path / "mg", "--base", "org/tiny")
    assert "No such option: --base" in alignctl("convert-hf2mg", *based).err
    assert not (tmp_path / "hf").exists()
