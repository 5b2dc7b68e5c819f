"""A real model's weights through the conversions, as a user types them."""

from pathlib import Path

import pytest
import torch

from tests import smollm2
from tests.commands import alignctl

pytestmark = pytest.mark.ci

PROMPT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smollm2.write(tmp_path_factory.mktemp("smollm2") / "hf")


def said(folder: Path) -> str:
    """Twenty tokens, always the likeliest."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokens = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        found = model.generate(tokens, max_new_tokens=20, do_sample=False)
    return str(tokenizer.decode(found[0, tokens.shape[1] :]))


@pytest.mark.slow
@pytest.mark.parametrize("format", ["mcore", "legacy"])
def test_smollm2_comes_back_from_three_way_tensor_parallelism_and_says_the_same(
    format: str, original: Path, tmp_path: Path
) -> None:
    """TP 3, PP 2: each rank has three query heads, one group and fifteen layers."""
    flags = ("--tp", "3", "--pp", "2", "--format", format)
    there = alignctl("convert-hf2mg", "--load", original, "--save", tmp_path / "mg", *flags)
    assert there.code == 0, there.text
    back = alignctl("convert-mg2hf", "--load", tmp_path / "mg", "--save", tmp_path / "hf")
    assert back.code == 0, back.text
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (original / name).read_bytes()
    assert "Paris" in said(original)
    assert said(tmp_path / "hf") == said(original)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--tp", "2"), "model.num_attention_heads 9 is not divisible by --tp 2"),
        (("--pp", "4"), "model.num_layers 30 is not divisible by --pp 4"),
    ],
)
def test_a_layout_that_does_not_divide_smollm2_is_refused(
    flags: tuple[str, ...], words: str, original: Path, tmp_path: Path
) -> None:
    outcome = alignctl("convert-hf2mg", "--load", original, "--save", tmp_path / "mg", *flags)
    assert outcome.code == 2
    assert words in outcome.err
    assert not list(tmp_path.iterdir())
