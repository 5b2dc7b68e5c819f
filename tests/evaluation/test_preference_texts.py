"""What a reward model reads of an answer: the tokens that it was trained on, with any template."""

from pathlib import Path

import numpy as np
import pytest

from alignctl.data.rows.files import Row
from alignctl.data.rows.preference_schemas import preference_schema_of
from alignctl.data.rows.prompt_schemas import prompt_schema_of
from alignctl.data.text.masks import encode
from alignctl.data.text.templates import Renderer
from alignctl.data.tokenizer import Tokenizer
from alignctl.stages.eval_preference import answer_documents
from tests.real_tokenizers import NAMES, tokenizer

CHAT = [{"role": "user", "content": "Which animal?"}]
ASKED: tuple[dict[str, object], ...] = (
    {"query": "Which animal?"},
    {"prompt": "\n\nHuman: Which animal?\n\nAssistant: "},
    {"prompt": "Which animal? A: "},
    {"messages": CHAT},
)


def row(record: dict[str, object]) -> Row:
    return Row(Path("rows.jsonl"), 1, record)


def read(asked: dict[str, object], said: str, finish: str, tokens_of: Tokenizer) -> list[int]:
    question = prompt_schema_of(row(asked)).parse(row(asked))
    answer = {"response": said, "finish": finish}
    (document,) = answer_documents([question], [answer], "auto", tokens_of)
    return [int(token) for token in document]


def trained(asked: dict[str, object], said: str, tokens_of: Tokenizer) -> list[int]:
    """The tokens of the better answer of a row of `alignctl reward`."""
    record: dict[str, object] = {**asked, "response": [said, "none"], "score": [1, 0]}
    if "messages" in asked:
        answers = [[*CHAT, {"role": "assistant", "content": text}] for text in (said, "none")]
        record = {"chosen": answers[0], "rejected": answers[1]}
    better = preference_schema_of(row(record)).parse(row(record)).answers[0]
    (document,) = encode([Renderer("auto", tokens_of)(better).keep_last_turn()], tokens_of)
    return [int(token) for token in document.tokens]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_an_answer_is_scored_on_the_tokens_of_training(name: str, asked: dict[str, object]) -> None:
    tokens_of = tokenizer(name)
    said = trained(asked, "cat is the one.", tokens_of)
    assert read(asked, "cat is the one.", "stop", tokens_of) == said
    cut = read(asked, "cat is the one.", "length", tokens_of)
    assert tokens_of.eos_id not in cut[-1:]
    assert cut == said[: len(cut)]
    assert len(cut) < len(said)


def test_a_blank_answer_is_its_prompt_and_eos() -> None:
    tokens_of = tokenizer("smollm2")
    prompt = read(ASKED[0], "", "length", tokens_of)
    assert read(ASKED[0], " ", "stop", tokens_of) == [*prompt, tokens_of.eos_id]
    assert np.array_equal(prompt, trained(ASKED[0], "cat", tokens_of)[: len(prompt)])
