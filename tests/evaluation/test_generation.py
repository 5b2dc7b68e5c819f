"""Answers of real models by vLLM, compared with transformers' own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from alignctl.config.generation import Generation
from alignctl.data.tokenizer import load_tokenizer
from alignctl.errors import UserError
from alignctl.evaluation.generation import Generator
from tests import tiny
from tests.evaluation.asked import EOS, GREEDY, LENGTH, LIMIT, QUESTIONS

pytestmark = pytest.mark.ci


def said_by_transformers(folder: Path, prompts: list[list[int]], **more: object) -> list[list[int]]:
    """The likeliest tokens, prompt by prompt, without any padding."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    return [
        model.generate(
            torch.tensor([prompt]),
            max_new_tokens=LENGTH,
            do_sample=False,
            pad_token_id=3,
            **more,
        )[0, len(prompt) :].tolist()
        for prompt in prompts
    ]


@pytest.mark.parametrize(("model", "penalty"), GREEDY)
def test_greedy_answers_are_those_of_transformers_token_for_token(
    model: str, penalty: float, models: Path, found: dict[str, Any]
) -> None:
    prompts = found[f"{model} prompts"]
    expected = said_by_transformers(
        models / model, prompts, repetition_penalty=penalty, eos_token_id=EOS
    )
    assert found[f"{model} {penalty}"] == expected
    assert len({tuple(tokens) for tokens in expected}) > len(expected) // 2


@pytest.mark.parametrize("format", ["mcore", "legacy"])
def test_a_megatron_checkpoint_says_what_the_hugging_face_folder_says(
    format: str, found: dict[str, Any]
) -> None:
    assert found[format] == found["llama-gqa 1.0"]


def test_every_end_token_of_generation_config_json_ends_an_answer(
    models: Path, found: dict[str, Any]
) -> None:
    """Where transformers ends it, by the file beside the model; here through a Megatron folder.

    The second end token is an ordinary one: it is no part of what was said.
    """
    expected = said_by_transformers(models / "llama-ends", found["llama-gqa prompts"])
    assert found["ends"] == expected
    kept = models / "mcore-ends" / "hf" / "generation_config.json"
    ends = json.loads(kept.read_text())["eos_token_id"]
    assert found["ends finish"] == [
        "stop" if tokens[-1] in ends else "length" for tokens in expected
    ]
    tokenizer = load_tokenizer(models / "llama-ends")
    assert found["ends text"] == [
        tokenizer.decode_answer([token for token in tokens if token not in ends])
        for tokens in expected
    ]
    by_second = [tokens for tokens in expected if tokens[-1] == ends[1]]
    assert len(by_second) > len(expected) // 4
    assert found["ends"] != found["llama-gqa 1.0"]


def test_a_long_prompt_keeps_its_last_tokens(found: dict[str, Any]) -> None:
    """The HH form adds characters, of which `th` would be one token, but is not there."""
    for text, tokens in zip(QUESTIONS, found["llama-gqa prompts"], strict=True):
        written = f"\n\nHuman: {text}\n\nAssistant:"
        assert len(tokens) == min(len(written), LIMIT)
    assert found["llama-gqa prompts"][-1][-5:] == found["llama-gqa prompts"][0][-5:]


def test_what_is_drawn_depends_on_the_prompts_own_number_alone(found: dict[str, Any]) -> None:
    """So an interrupted run goes on as if nothing had been; and samples differ."""
    assert found["drawn"][20:] == found["last drawn"]
    assert all(first != second for first, second in found["drawn"])


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"max_new_tokens": 96}, "max_new_tokens 96 leaves no room for a prompt"),
        ({"max_prompt_length": 60, "max_new_tokens": 40}, "= 100 exceed the model's longest"),
    ],
)
def test_lengths_that_the_model_has_not_are_refused(
    knobs: dict[str, Any], words: str, models: Path
) -> None:
    with pytest.raises(UserError) as caught:
        Generator(models / "llama-gqa", Generation(**knobs))
    assert words in caught.value.message


def test_a_default_length_that_the_model_has_not_is_lowered_and_told(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = Generator(models / "llama-gqa", Generation())
    assert (generator.settings.max_new_tokens, generator.max_prompt_length) == (48, 48)
    assert (
        "llama-gqa: max_new_tokens is 48, not 512: the model's longest" in capsys.readouterr().err
    )


def test_heads_that_vllm_cannot_run_on_a_cpu_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        Generator(tiny.write_model(tmp_path / "bloom", "bloom"), Generation(max_new_tokens=8))
    assert "vLLM cannot run attention heads of 8" in caught.value.message
