"""The same words, the same tokens, in training and at inference, with tokenizers of others.

The law: the tokens of a prompt as inference sees it are a prefix of the tokens that training saw,
and what is learned starts where they end. It is tried for every schema and template, on text that
joins across every boundary: digits, spaces, marks, quotes, emoji, lines, special tokens.
"""

from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from alignctl.data.prompts import render_prompts
from alignctl.data.rows.files import Row
from alignctl.data.rows.preference_schemas import preference_schema_of
from alignctl.data.rows.prompt_schemas import prompt_schema_of
from alignctl.data.rows.schemas import schema_of
from alignctl.data.text.masks import Encoded, encode, encode_prompts
from alignctl.data.text.templates import Renderer
from alignctl.data.tokenizer import Tokenizer
from alignctl.errors import UserError
from tests.real_tokenizers import NAMES, folder, tokenizer

PIECES = (
    *("cat", "Yes", " the", "it's", "'s", "A", "a", "1", "12", "345", "3.14", ".", "!", ":", "#"),
    *("####", "$", "{", "\\boxed{3}", "def f(x):\n    return x", " ", "  ", "\t", "\n", "\n\n"),
    *("\r\n", "\u00a0", "\u3000", "\u200d", "\ufeff", "\u0301", "e", "\u00e9", "\u00df"),
    *("\u4e2d\u6587", "\u65e5\u672c", "\u0627", "\U0001f642", "\U0001f44d\U0001f3fd"),
    *("<|im_end|>", "</s>", "<think>", "</think>", "<s>"),
)
TEXTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join)
SAID = TEXTS.filter(lambda text: bool(text.strip()) and "Human:" not in text)
SPACES = st.sampled_from(["", " ", "  "])
TURNS = st.lists(st.tuples(SAID, SAID), min_size=1, max_size=3)
EXAMPLES = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def row(record: dict[str, object]) -> Row:
    return Row(Path("rows.jsonl"), 1, record)


def read_prompt(
    record: dict[str, object], template: str, tokens_of: Tokenizer
) -> NDArray[np.int32]:
    """The tokens that a policy is asked with: of rlhf, online-dpo, grpo, generate and eval."""
    question = prompt_schema_of(row(record)).parse(row(record))
    prompt = render_prompts([question], Renderer(template, tokens_of))[0]
    return encode_prompts([prompt], tokens_of)[0]


def documents(record: dict[str, object], template: str, tokens_of: Tokenizer) -> list[Encoded]:
    """What sft learns of a row."""
    conversation = schema_of(row(record)).parse(row(record))
    return encode(Renderer(template, tokens_of).documents(conversation), tokens_of)


def answers(record: dict[str, object], template: str, tokens_of: Tokenizer) -> list[Encoded]:
    """What reward and dpo compare of a row."""
    comparison = preference_schema_of(row(record)).parse(row(record))
    render = Renderer(template, tokens_of)
    return encode([render(each).keep_last_turn() for each in comparison.answers], tokens_of)


def check(prompt: NDArray[np.int32], document: Encoded, *, is_last: bool = True) -> None:
    """The law. A turn of one token that joins the next prompt is not learned (see `masks`)."""
    assert len(prompt) < len(document.tokens)
    np.testing.assert_array_equal(document.tokens[: len(prompt)], prompt)
    assert not len(prompt) or not document.supervised[len(prompt) - 1]
    assert not is_last or document.supervised[len(prompt)]


def templates(name: str) -> list[str]:
    return ["auto", "hh", *(["tokenizer"] if tokenizer(name).chat_templates else [])]


@pytest.mark.parametrize("name", NAMES)
@EXAMPLES
@given(prompt=SAID, response=SAID, marker=st.booleans(), space=SPACES, data=st.data())
def test_a_prompt_is_a_prefix_of_its_row(
    name: str, prompt: str, response: str, marker: bool, space: str, data: st.DataObject
) -> None:
    template, tokens_of = data.draw(st.sampled_from(templates(name))), tokenizer(name)
    asked = f"\n\nHuman: {prompt}\n\nAssistant:{space}" if marker else prompt + space
    for key in ("prompt", "query"):
        (document,) = documents({key: asked, "response": response}, template, tokens_of)
        check(read_prompt({key: asked}, template, tokens_of), document)
        scored = [response, "other"]
        pair: dict[str, object] = {key: asked, "response": scored, "score": [1, 0]}
        for answer in answers(pair, template, tokens_of):
            check(read_prompt({key: asked}, template, tokens_of), answer)


@pytest.mark.parametrize("name", NAMES)
@EXAMPLES
@given(turns=TURNS, system=st.none() | SAID, other=SAID, data=st.data())
def test_each_turn_of_a_chat_follows_what_it_is_asked_with(
    name: str, turns: list[tuple[str, str]], system: str | None, other: str, data: st.DataObject
) -> None:
    template, tokens_of = data.draw(st.sampled_from(templates(name))), tokenizer(name)
    messages = [{"role": "system", "content": system}] if system is not None else []
    asked = []
    for user, assistant in turns:
        messages = [*messages, {"role": "user", "content": user}]
        asked.append(read_prompt({"messages": messages}, template, tokens_of))
        messages = [*messages, {"role": "assistant", "content": assistant}]
    learned = documents({"messages": messages}, template, tokens_of)
    # Templates that rewrite earlier turns give each turn a document of its own.
    assert len(learned) in (1, len(turns))
    for number, prompt in enumerate(asked):
        document = learned[-1 if len(learned) == 1 else number]
        check(prompt, document, is_last=len(learned) > 1 or number + 1 == len(asked))
    rejected = [*messages[:-1], {"role": "assistant", "content": other}]
    for answer in answers({"chosen": messages, "rejected": rejected}, template, tokens_of):
        check(asked[-1], answer)


@pytest.mark.parametrize("name", NAMES)
@EXAMPLES
@given(turns=st.lists(st.tuples(SAID, SPACES, SAID), min_size=1, max_size=3), space=SPACES)
def test_each_turn_of_hh_text_follows_the_text_before_it(
    name: str, turns: list[tuple[str, str, str]], space: str
) -> None:
    text, asked = "", []
    for user, between, assistant in turns:
        text += f"\n\nHuman: {user}\n\nAssistant:"
        asked.append(read_prompt({"prompt": text + space}, "auto", tokenizer(name)))
        text += between + assistant
    for key in ("text", "chosen"):
        (document,) = documents({key: text}, "auto", tokenizer(name))
        for number, prompt in enumerate(asked):
            check(prompt, document, is_last=number + 1 == len(asked))


BOUNDARIES: dict[str, tuple[str, str]] = {
    "a word": ("\n\nHuman: Hi\n\nAssistant: ", "cat is the one."),
    "a number after a number": ("12", "345"),
    "a space of the user's own": ("Q: Hi\nA: ", "cat"),
    "lines after lines": ("Hi\n\n", "\n\ncat"),
    "a mark on a letter": ("cafe", "\u0301"),
    "a quote": ("it", "'s"),
    "an emoji and its tone": ("\U0001f44d", "\U0001f3fd"),
}
"""Prompts and responses, by what happens between them."""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", BOUNDARIES)
def test_what_joins_a_prompt_is_learned_from_the_prompts_own_tokens_on(
    name: str, case: str
) -> None:
    prompt, response = BOUNDARIES[case]
    tokens_of = tokenizer(name)
    (document,) = documents({"prompt": prompt, "response": response}, "auto", tokens_of)
    asked = read_prompt({"prompt": prompt}, "auto", tokens_of)
    check(asked, document)
    whole = tokens_of.encode_batch([prompt + response])[0].ids
    # The text again, and the tokens of the whole text wherever these leave the prompt alone.
    ids = document.tokens.tolist()
    texts = [normalize("NFC", tokens_of.decode_answer(each)) for each in (ids, whole)]
    assert texts[0] == texts[1]
    assert document.is_parted == (ids[len(ids) - 1 - len(whole) : -1] != whole)


@pytest.mark.parametrize("name", ["llama3.1", "qwen3", "deepseek-v3", "gemma3", "smollm2"])
def test_chats_are_written_as_transformers_writes_them(name: str) -> None:
    """Also the prompt: what `add_generation_prompt` writes is what is read before an answer."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder(name))
    turns: list[dict[str, object]] = [
        {"role": "user", "content": "What is 2 + 3?"},
        {"role": "assistant", "content": "It is 5."},
        {"role": "user", "content": "And 2 * 3?"},
    ]
    answered = [*turns, {"role": "assistant", "content": "That is 6."}]
    conversation = schema_of(row({"messages": answered})).parse(row({"messages": answered}))
    written = Renderer("tokenizer", tokenizer(name))(conversation)
    whole = theirs.apply_chat_template(answered, tokenize=False)
    assert whole.startswith(written.text)
    assert not whole[len(written.text) :].strip()
    prompt = theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert written.before_last_turn().text == prompt


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_temperature",
        "description": "Tell how warm it is.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string", "description": "A town."}},
            "required": ["place"],
        },
    },
}
CALL: dict[str, object] = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "type": "function",
            "id": "call_001",
            "function": {"name": "get_temperature", "arguments": {"place": "Turin"}},
        }
    ],
}
ASKED: list[dict[str, object]] = [
    {"role": "system", "content": "Answer in a few words."},
    {"role": "user", "content": "How warm is it in Turin?"},
]
CALLED: list[dict[str, object]] = [
    *ASKED,
    CALL,
    {"role": "tool", "name": "get_temperature", "tool_call_id": "call_001", "content": "21"},
]


@pytest.mark.parametrize(
    ("name", "turns", "tools"),
    [("llama3.1", ASKED, []), ("qwen3", ASKED, [WEATHER]), ("qwen3", CALLED, [WEATHER])],
    ids=["system", "before a call", "after a call"],
)
def test_tools_and_system_turns_are_written_as_transformers_writes_them(
    name: str, turns: list[dict[str, object]], tools: list[dict[str, object]]
) -> None:
    """And what the last turn is asked with is a prefix of what is learned."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder(name))
    answer = {"role": "assistant", "content": "21 degrees."}
    last = CALL if tools and turns is ASKED else answer
    record: dict[str, object] = {"messages": [*turns, last], "tools": tools}
    conversation = schema_of(row(record)).parse(row(record))
    written = Renderer("tokenizer", tokenizer(name))(conversation)
    whole = theirs.apply_chat_template([*turns, last], tools=tools or None, tokenize=False)
    assert whole.startswith(written.text)
    assert not whole[len(written.text) :].strip()
    assert "Answer in a few words." in written.text
    assert ('"get_temperature"' in written.text) == bool(tools)
    prompt = theirs.apply_chat_template(
        turns, tools=tools or None, tokenize=False, add_generation_prompt=True
    )
    assert written.before_last_turn().text == prompt
    asked = read_prompt({"messages": turns, "tools": tools}, "tokenizer", tokenizer(name))
    np.testing.assert_array_equal(asked, theirs(prompt, add_special_tokens=False)["input_ids"])
    check(asked, documents(record, "tokenizer", tokenizer(name))[-1])


def test_tools_that_a_template_does_not_write_are_refused() -> None:
    """That of the package of Llama 3.1 has turns alone."""
    record: dict[str, object] = {"messages": [*CALLED, CALL], "tools": [WEATHER]}
    with pytest.raises(UserError, match=r"rows.jsonl:1: the row has messages.*nothing writes"):
        documents(record, "tokenizer", tokenizer("llama3.1"))
