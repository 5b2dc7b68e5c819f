"""Schemas: what each row's own text is, which part is learned, and rows that do not fit."""

from pathlib import Path

import pytest

from alignctl.data.rows.files import Row
from alignctl.data.rows.messages import Message
from alignctl.data.rows.schemas import Conversation, schema_of
from alignctl.errors import UserError


def parse(record: dict[str, object], line: int = 1) -> Conversation:
    row = Row(Path("train.jsonl"), line, record)
    return schema_of(row).parse(row)


def learned(conversation: Conversation) -> tuple[str, list[str]]:
    own = conversation.own
    assert own is not None
    assert own.append_eos
    return own.text, [own.text[start:end] for start, end in own.spans]


def test_prompt_and_response_are_joined_as_they_are() -> None:
    assert learned(parse({"prompt": "1+1=", "response": "2"})) == ("1+1=2", ["2"])


def test_a_query_is_wrapped() -> None:
    text, spans = learned(parse({"query": "Hi?", "response": "Yes."}))
    assert text == "\n\nHuman: Hi?\n\nAssistant: Yes."
    assert spans == [" Yes."]


@pytest.mark.parametrize("key", ["text", "chosen"])
def test_every_assistant_turn_of_hh_text_is_learned(key: str) -> None:
    text = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d"
    conversation = parse({key: text, "rejected": "..."})
    assert learned(conversation) == (text, [" b", " d"])
    assert conversation.messages == (
        Message("user", "a"),
        Message("assistant", "b"),
        Message("user", "c"),
        Message("assistant", "d"),
    )


def test_hh_text_ends_with_the_last_turn_that_says_something() -> None:
    text = "Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:\n\nHuman: d\n\nAssistant: "
    assert learned(parse({"text": text})) == ("Human: a\n\nAssistant: b", [" b"])


def test_text_without_an_assistant_teaches_nothing() -> None:
    assert learned(parse({"text": "Once upon a time."})) == ("", [])
    assert learned(parse({"prompt": "a", "response": " \n"})) == ("", [])


def test_an_instruction_row_is_a_question_with_its_input_on_the_next_line() -> None:
    conversation = parse({"instruction": "Add.", "input": "1 2", "output": "3"})
    assert conversation.messages == (Message("user", "Add.\n1 2"), Message("assistant", "3"))
    assert conversation.own is None
    assert parse({"instruction": "Sing.", "input": "", "output": "La"}).messages[0].content == (
        "Sing."
    )


def test_chat_content_may_be_a_list_of_text_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert parse({"messages": [{"role": "user", "content": parts}]}).messages == (
        Message("user", "ab"),
    )


def test_an_unknown_schema_names_what_was_found_and_what_is_accepted() -> None:
    with pytest.raises(UserError) as caught:
        parse({"question": "a", "answer": "b"}, line=1)
    assert caught.value.message == (
        "train.jsonl:1: the keys of this row (answer, question) are not of a schema that is known"
    )
    assert caught.value.hint is not None
    assert "query + response; prompt + response" in caught.value.hint


def test_a_row_of_another_schema_than_the_first_is_named() -> None:
    schema = schema_of(Row(Path("t.jsonl"), 1, {"prompt": "a", "response": "b"}))
    with pytest.raises(UserError, match=r"t\.jsonl:9: no key 'prompt' in this row .*query"):
        schema.parse(Row(Path("t.jsonl"), 9, {"query": "a", "response": "b"}))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"query": "a", "response": ["b", "c"]}, "response is a list, where text is expected"),
        ({"prompt": None, "response": "b"}, "prompt is null, where text is expected"),
        ({"messages": "hello"}, "messages is text, where a list of {role, content} is expected"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\].content is null, where text is"),
        ({"messages": [{"content": "a"}]}, r"messages\[0\].role is null, where text is"),
        (
            {"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]},
            r"messages\[0\].weight is 0.5: a turn is learned \(1\) or not \(0\)",
        ),
        ({"prompt": "ab\ud83d", "response": "b"}, "half a surrogate pair .* at character 3"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(record: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=r"train\.jsonl:4: .*" + message):
        parse(record, line=4)
