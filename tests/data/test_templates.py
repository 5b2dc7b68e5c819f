"""Templates: the text of a conversation and the characters of it that are learned."""

from pathlib import Path
from typing import Any

import pytest

from alignctl.data.rows.files import Row
from alignctl.data.rows.messages import Message
from alignctl.data.rows.schemas import Conversation, Rendered, schema_of
from alignctl.data.text.templates import Renderer, render_hh
from alignctl.errors import UserError
from tests.data.conftest import MakeTokenizer

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}A:"
    "{% generation %}{{ m.content }}{% endgeneration %}{{ eos_token }}"
    "{% else %}U:{{ m.content }}{% endif %}{% endfor %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }} {{ eos_token }}"
    "{% else %}{{ raise_exception('no system message') }}{% endif %}{% endfor %}"
)
HEADERS = "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}{{ eos_token }}{% endfor %}"
NO_EOS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
FORGETFUL = (
    "{% for m in messages %}{{ m.role }}: "
    "{% if m.role == 'user' or loop.last %}{{ m.content }}{% endif %}{{ eos_token }}{% endfor %}"
)


def chat(*turns: str) -> Conversation:
    """Turns alternate between user and assistant."""
    roles = ("user", "assistant")
    messages = [Message(roles[i % 2], turn) for i, turn in enumerate(turns)]
    return Conversation("train.jsonl:5", tuple(messages), None)


def parts(rendered: Rendered) -> list[str]:
    return [rendered.text[start:end] for start, end in rendered.spans]


def test_the_hh_form_learns_every_assistant_turn_and_ends_with_the_last() -> None:
    rendered = render_hh(chat("a", "b", "c", "d", "e"))
    assert rendered.text == "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d"
    assert parts(rendered) == [" b", " d"]
    assert rendered.append_eos


def test_the_hh_form_puts_a_system_message_first_and_refuses_other_roles() -> None:
    system = Message("system", "Be kind.")
    conversation = Conversation("t.jsonl:1", (system, *chat("a", "b").messages), None)
    assert render_hh(conversation).text == "Be kind.\n\nHuman: a\n\nAssistant: b"
    with pytest.raises(UserError, match=r"t\.jsonl:1: messages\[2\] has the role 'system'"):
        render_hh(Conversation("t.jsonl:1", (*chat("a", "b").messages, system), None))


def test_a_chat_template_learns_each_turn_with_its_eos(make_tokenizer: MakeTokenizer) -> None:
    write = Renderer("auto", make_tokenizer(chat_template=CHATML))
    rendered = write(chat("a", "b", "c", "d"))
    assert rendered.text == ("<|user|>a</s>\n<|assistant|>b</s>\n<|user|>c</s>\n<|assistant|>d</s>")
    assert parts(rendered) == ["b</s>", "d</s>"]
    assert not rendered.append_eos


def test_generation_marks_decide_and_a_following_eos_is_learned(
    make_tokenizer: MakeTokenizer,
) -> None:
    write = Renderer("auto", make_tokenizer(chat_template=MARKED))
    rendered = write(chat("a", "b", "c", "d"))
    assert rendered.text == "<s>U:aA:b</s>U:cA:d</s>"
    assert parts(rendered) == ["b</s>", "d</s>"]


def test_a_template_without_generation_prompt_learns_the_space_it_does_not_give(
    make_tokenizer: MakeTokenizer,
) -> None:
    """Llama 2's prompt ends with [/INST]: the space after it is the model's to produce."""
    write = Renderer("auto", make_tokenizer(chat_template=LLAMA2))
    assert parts(write(chat("a", "b", "c", "d"))) == [" b </s>", " d </s>"]


def test_a_template_without_generation_prompt_does_not_learn_its_headers(
    make_tokenizer: MakeTokenizer,
) -> None:
    """The content "a" is also inside the header <assistant>, which must not confuse the search."""
    write = Renderer("auto", make_tokenizer(chat_template=HEADERS))
    assert parts(write(chat("q", "a"))) == ["a</s>"]


def test_eos_is_appended_when_the_template_writes_none(make_tokenizer: MakeTokenizer) -> None:
    rendered = Renderer("auto", make_tokenizer(chat_template=NO_EOS))(chat("a", "b", "c", "d"))
    assert rendered.append_eos
    assert parts(rendered) == [" b\n", " d\n"]


def test_turns_after_the_last_answer_and_blank_answers_are_left_out(
    make_tokenizer: MakeTokenizer,
) -> None:
    write = Renderer("auto", make_tokenizer(chat_template=CHATML))
    rendered = write(chat("a", " ", "b", "c", "d", ""))
    assert rendered.text.endswith("<|assistant|>c</s>")
    assert parts(rendered) == ["c</s>"]
    assert write(chat("a")).spans == ()
    assert write(chat()).spans == ()


def test_turns_that_a_template_rewrites_later_are_learned_in_documents_of_their_own(
    make_tokenizer: MakeTokenizer,
) -> None:
    """FORGETFUL writes an answer only where it is last: "b" is learned while it is."""
    write = Renderer("auto", make_tokenizer(chat_template=FORGETFUL))
    assert [parts(each) for each in write.documents(chat("a", "b"))] == [[" b</s>"]]
    first, whole = write.documents(chat("a", "b", "c", "d"))
    assert (first.text, parts(first)) == ("user: a</s>assistant: b</s>", [" b</s>"])
    assert whole.text == "user: a</s>assistant: </s>user: c</s>assistant: d</s>"
    assert parts(whole) == [" d</s>"]
    assert write(chat("a", "b", "c", "d")) == whole


def test_a_template_whose_turns_change_what_is_before_them_is_refused(
    make_tokenizer: MakeTokenizer,
) -> None:
    write = Renderer("auto", make_tokenizer(chat_template="{{ messages|length }}" + NO_EOS))
    with pytest.raises(UserError, match=r"train\.jsonl:5: the chat template .* rewrites earlier"):
        write(chat("a", "b"))


def test_what_a_template_raises_is_told_with_the_row(make_tokenizer: MakeTokenizer) -> None:
    write = Renderer("auto", make_tokenizer(chat_template=LLAMA2))
    conversation = Conversation(
        "t.jsonl:3", (Message("system", "x"), *chat("a", "b").messages), None
    )
    with pytest.raises(UserError, match=r"t\.jsonl:3: .*refuses .*: no system message"):
        write(conversation)


TURNS = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}]
RECORDS: tuple[dict[str, object], ...] = (
    {"prompt": "p", "response": "r"},
    {"query": "p", "response": "r"},
    {"messages": TURNS},
    {"text": "\n\nHuman: p\n\nAssistant: r"},
)
HH_FORM = "\n\nHuman: p\n\nAssistant: r"
CHAT_FORM = "<|user|>p</s>\n<|assistant|>r</s>"


@pytest.mark.parametrize(
    ("choice", "has_template", "texts"),
    [
        ("auto", True, ["pr", HH_FORM, CHAT_FORM, HH_FORM]),
        ("auto", False, ["pr", HH_FORM, HH_FORM, HH_FORM]),
        ("tokenizer", True, [CHAT_FORM] * 4),
        ("hh", True, [HH_FORM] * 4),
        ("none", True, ["pr", HH_FORM, None, HH_FORM]),
    ],
)
def test_the_setting_decides_for_each_schema(
    make_tokenizer: MakeTokenizer, choice: str, has_template: bool, texts: list[str | None]
) -> None:
    settings: dict[str, Any] = {"chat_template": CHATML} if has_template else {}
    write = Renderer(choice, make_tokenizer(**settings))
    for record, text in zip(RECORDS, texts, strict=True):
        row = Row(Path("train.jsonl"), 1, record)
        conversation = schema_of(row).parse(row)
        if text is None:
            with pytest.raises(UserError, match=r"data\.template is none"):
                write(conversation)
        else:
            assert write(conversation).text == text


def test_the_tokenizer_template_must_exist(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(UserError, match="has no chat template"):
        Renderer("tokenizer", make_tokenizer())


THINKING = (
    "{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content %}"
    "<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TOOLS = "{% if tools %}{{ tools|length }} tools {% endif %}" + THINKING


def test_what_a_template_writes_of_a_message_is_learned(make_tokenizer: MakeTokenizer) -> None:
    answer = Message("assistant", "b", extra={"reasoning_content": "r", "name": "n"})
    conversation = Conversation("t.jsonl:3", (Message("user", "a"), answer), None)
    write = Renderer("auto", make_tokenizer(chat_template=THINKING))
    assert parts(write(conversation)) == ["<think>r</think>b</s>"]
    assert write.unread(conversation) == ["messages.name"]
    plain = Renderer("auto", make_tokenizer(chat_template=CHATML))
    assert parts(plain(conversation)) == ["b</s>"]
    assert plain.unread(conversation) == ["messages.reasoning_content", "messages.name"]


@pytest.mark.parametrize("template", [CHATML, MARKED, None])
def test_a_turn_without_weight_is_read_but_not_learned(
    make_tokenizer: MakeTokenizer, template: str | None
) -> None:
    settings: dict[str, Any] = {"chat_template": template} if template else {}
    write = Renderer("auto", make_tokenizer(**settings))
    first, second, *rest = chat("a", "b", "c", "d").messages
    unlearned = Message(second.role, second.content, is_learned=False)
    all_learned = write(chat("a", "b", "c", "d"))
    one = write(Conversation("t.jsonl:3", (first, unlearned, *rest), None))
    assert one.text == all_learned.text
    assert one.spans == all_learned.spans[1:]
    assert one.prompt_ends == all_learned.prompt_ends
    # Nothing is learned after the last turn that counts, so it is not read either.
    last = Message("assistant", "d", is_learned=False)
    cut = write(Conversation("t.jsonl:3", (first, second, rest[0], last), None))
    assert parts(cut) == parts(all_learned)[:1]


def test_tools_reach_a_template_that_writes_them_and_are_refused_by_others(
    make_tokenizer: MakeTokenizer,
) -> None:
    conversation = Conversation("t.jsonl:3", chat("a", "b").messages, None, tools=({}, {}))
    write = Renderer("auto", make_tokenizer(chat_template=TOOLS))
    assert write(conversation).text.startswith("2 tools <user>a")
    for settings in ({"chat_template": CHATML}, {}):
        with pytest.raises(UserError, match=r"t\.jsonl:3: the row has tools, which nothing writes"):
            Renderer("auto", make_tokenizer(**settings))(conversation)  # type: ignore[arg-type]


def test_calls_of_functions_are_refused_where_nothing_writes_them(
    make_tokenizer: MakeTokenizer,
) -> None:
    call = Message("assistant", "", extra={"tool_calls": [1], "content": None})
    conversation = Conversation("t.jsonl:3", (Message("user", "a"), call), None)
    with pytest.raises(UserError, match=r"t\.jsonl:3: the row has messages\.tool_calls"):
        Renderer("auto", make_tokenizer(chat_template=CHATML))(conversation)
    template = CHATML.replace("{{ m.content }}", "{{ m.content }}{{ m.tool_calls }}")
    rendered = Renderer("auto", make_tokenizer(chat_template=template))(conversation)
    assert parts(rendered) == ["None[1]</s>"]


NAMED = [{"name": "rag", "template": "R"}, {"name": "tool_use", "template": TOOLS}]


def test_templates_with_names_and_no_default_are_refused_by_their_names(
    make_tokenizer: MakeTokenizer,
) -> None:
    tokenizer = make_tokenizer(chat_template=NAMED)
    for choice in ("auto", "tokenizer"):
        with pytest.raises(UserError, match=r"have names \(rag, tool_use\), and none is the def"):
            Renderer(choice, tokenizer)(chat("a", "b"))
    assert parts(Renderer("tool_use", tokenizer)(chat("a", "b"))) == ["b</s>"]
    # Rows with a text of their own need none.
    own = schema_of(row := Row(Path("t.jsonl"), 1, RECORDS[0])).parse(row)
    assert Renderer("auto", tokenizer)(own).text == "pr"
    # As in transformers, tools choose the template that is made for them.
    tools = Conversation("t.jsonl:3", chat("a", "b").messages, None, tools=({},))
    assert Renderer("auto", tokenizer)(tools).text.startswith("1 tools")


def test_a_template_that_is_not_there_is_named_with_the_nearest(
    make_tokenizer: MakeTokenizer,
) -> None:
    with pytest.raises(UserError, match=r"'tool_us', and .* no chat template of this") as caught:
        Renderer("tool_us", make_tokenizer(chat_template=NAMED))
    assert caught.value.hint == "did you mean tool_use?"
    with pytest.raises(UserError) as caught:
        Renderer("qwen", make_tokenizer())
    assert caught.value.hint == "known: auto, tokenizer, hh, none"
