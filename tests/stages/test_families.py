"""The tiny preset of each family through every stage, as a user would start them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alignctl.data.tokenizer import load_tokenizer
from tests.commands import alignctl

pytestmark = pytest.mark.ci

ROOT = Path(__file__).parents[2]
FAMILIES = [
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama3", "mistral", "qwen2")),
    "qwen3",
]
SHORT = ("train.eval_interval=100", "checkpoint.save_interval=100")


def run(*arguments: object) -> str:
    outcome = alignctl(*arguments)
    assert outcome.code == 0, outcome.text
    return outcome.text


def said_by_transformers(folder: Path, texts: list[str], count: int) -> list[tuple[int, str]]:
    """How many tokens are likeliest after each text, and what they say."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    for text in texts:
        prompt = theirs(text).input_ids
        tokens = network.generate(
            torch.tensor([prompt]), max_new_tokens=count, do_sample=False, eos_token_id=ours.eos_id
        )[0, len(prompt) :].tolist()
        found.append((len(tokens), ours.decode_answer(tokens)))
    return found


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiny_model_goes_through_every_stage(tmp_path: Path, family: str) -> None:
    """There and back bit by bit; trained, rewarded, aligned; asked as transformers asks it."""
    name, inputs = f"tiny-{family}", tmp_path / "inputs"
    make = [sys.executable, "examples/tiny_inputs.py", str(inputs), "--preset", name]
    subprocess.run(make, cwd=ROOT, check=True, timeout=300, capture_output=True)
    preset, mg = ("--preset", name), tmp_path / "mg"
    told = run("convert-hf2mg", *preset, "--load", inputs / "model", "--save", mg)
    assert "verified" in told
    run("convert-mg2hf", "--load", mg, "--save", tmp_path / "back")
    before, after = (
        load_file(f / "model.safetensors") for f in (inputs / "model", tmp_path / "back")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)

    def train(stage: str, data: str, *more: object) -> Path:
        output = tmp_path / stage
        rows = ("--data", inputs / data, "--output", output)
        run(stage, *preset, *rows, *SHORT, *more)
        assert json.loads((output / "result.json").read_text())
        return output

    sft = train("sft", "sft", "--load", mg, "train.steps=30")
    reward = train("reward", "pairs", "--load", sft, "train.steps=4")
    train("dpo", "pairs", "--load", sft, "train.steps=3", "lora.rank=4")
    few = ("train.steps=1", "experience.prompts=16", "batch.micro_batch_size=8")
    prompts = ("--load", sft, *few, "batch.global_batch_size=16")
    own = ("parallel.tp=2", "roles.reward.parallel.tp=1", "roles.value.parallel.tp=1")
    train("rlhf", "prompts", *prompts, "--reward-load", reward, *own)
    train("grpo", "prompts", *prompts, "experience.samples=4", "parallel.tp=2")
    hf = tmp_path / "hf"
    run("convert-mg2hf", "--load", sft, "--save", hf)
    texts = [f"What is {a} + {b}?" for a, b in ((1, 2), (30, 4), (17, 25), (8, 8))]
    (tmp_path / "prompts.txt").write_text("\n".join(texts))
    answers = tmp_path / "answers.jsonl"
    data = ("--load", hf, "--data", tmp_path / "prompts.txt", "--output", answers)
    run("generate", *data, "max_new_tokens=12", "max_prompt_length=40", "kv_cache_gib=0.1")
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    found = [(row["num_tokens"], row["response"]) for row in rows]
    assert found == said_by_transformers(hf, texts, 12)
