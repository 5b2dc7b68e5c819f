"""Rows of other tools: what changes what is learned or seen is honoured, refused or counted."""

from pathlib import Path

import pytest

from alignctl.data.rows.files import Row
from alignctl.data.rows.messages import Message
from alignctl.data.rows.preference_schemas import preference_schema_of
from alignctl.data.rows.prompt_schemas import prompt_schema_of
from alignctl.data.rows.schemas import Conversation, schema_of
from alignctl.errors import UserError

USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def row(record: dict[str, object]) -> Row:
    return Row(Path("train.jsonl"), 4, record)


def parse(record: dict[str, object]) -> Conversation:
    return schema_of(row(record)).parse(row(record))


@pytest.mark.parametrize("key", ["weight", "train", "training", "trainable", "loss", "loss_mask"])
@pytest.mark.parametrize("value", [0, False, 0.0, 1, True, None])
def test_a_turn_without_weight_is_not_learned(key: str, value: object) -> None:
    found = parse({"messages": [USER, {**ASSISTANT, key: value}]})
    assert found.messages[1].is_learned == (value in (1, None))
    assert found.messages[1].extra == {}


@pytest.mark.parametrize("value", [0.5, 2, "0", -1, [0], float("nan")])
def test_half_a_weight_is_refused(value: object) -> None:
    with pytest.raises(UserError, match=r"train\.jsonl:4: messages\[1\]\.weight is .*learned"):
        parse({"messages": [USER, {**ASSISTANT, "weight": value}]})


def test_other_keys_of_a_message_are_kept_for_templates_unless_they_are_empty() -> None:
    """Parquet files have every key in every message, most of them null."""
    turn: dict[str, object] = {
        **ASSISTANT,
        "reasoning_content": "r",
        "name": None,
        "tool_calls": [],
    }
    assert parse({"messages": [USER, turn]}).messages[1].extra == {"reasoning_content": "r"}


def test_a_turn_that_only_calls_functions_may_have_no_content() -> None:
    calls = [{"function": {"name": "f", "arguments": "{}"}}]
    turn = {"role": "assistant", "content": None, "tool_calls": calls}
    (_, found) = parse({"messages": [USER, turn]}).messages
    assert found.extra == {"tool_calls": calls, "content": None}
    with pytest.raises(UserError, match=r"messages\[1\]\.content is null"):
        parse({"messages": [USER, {"role": "assistant", "content": None}]})


def test_system_history_and_tools_stand_beside_a_conversation() -> None:
    context: dict[str, object] = {"system": "s", "history": [["h", "i"]], "tools": [{"name": "f"}]}
    before = (Message("system", "s"), Message("user", "h"), Message("assistant", "i"))
    asked, answered = Message("user", "a"), Message("assistant", "b")
    for record in ({"instruction": "a", "output": "b"}, {"query": "a", "response": "b"}):
        found = parse({**record, **context})
        assert found.messages == (*before, asked, answered)
        assert found.tools == ({"name": "f"},)
    del context["history"]
    chat = parse({"messages": [USER, ASSISTANT], **context})
    assert chat.messages == (before[0], asked, answered)
    assert chat.tools == ({"name": "f"},)


def test_a_query_is_written_after_its_system_message_and_history() -> None:
    found = parse({"query": "a", "response": "b", "system": "s", "history": [["h", "i"]]})
    assert found.own is not None
    assert found.own.text == ("s\n\nHuman: h\n\nAssistant: i\n\nHuman: a\n\nAssistant: b")
    assert [found.own.text[slice(*span)] for span in found.own.spans] == [" i", " b"]


def test_preferences_and_prompts_read_them_as_well() -> None:
    record: dict[str, object] = {"system": "s", "prompt": "a"}
    pair = row({**record, "chosen": [ASSISTANT], "rejected": [{**ASSISTANT, "content": "c"}]})
    for answer in preference_schema_of(pair).parse(pair).answers:
        assert answer.messages[:2] == (Message("system", "s"), Message("user", "a"))
    scored = row({"system": "s", "query": "a", "response": ["b", "c"], "score": [1, 0]})
    for answer in preference_schema_of(scored).parse(scored).answers:
        assert answer.messages[0] == Message("system", "s")
    for asked in ({"messages": [USER]}, {"query": "a"}, {"question": "a", "answer": "#### 1"}):
        one = row({**asked, "system": "s"})
        question = prompt_schema_of(one).parse(one)
        assert question.conversation.messages[0] == Message("system", "s")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a", "response": "b", "system": "s"}, "the row has system, and no place for"),
        ({"prompt": "a", "response": "b", "tools": [1]}, "the row has tools, and no place for"),
        ({"text": "\n\nHuman: a\n\nAssistant: b", "history": [["h", "i"]]}, "the row has history"),
        ({"messages": [USER, ASSISTANT], "history": [["h", "i"]]}, "the row has history"),
        (
            {"messages": [{"role": "system", "content": "t"}, USER], "system": "s"},
            "system is not the system message that messages begins with",
        ),
        ({"query": "a", "response": "b", "history": "h"}, "history is text, where a list of"),
        ({"query": "a", "response": "b", "history": [["h"]]}, r"history\[0\] is a list, where"),
        ({"query": "a", "response": "b", "system": 3}, "system is a number, where text"),
        ({"messages": [USER], "tools": "{"}, "tools is text that is not JSON"),
        ({"messages": [USER], "tools": {"a": 1}}, "tools is an object, where a list of functions"),
    ],
)
def test_what_has_no_place_or_another_kind_is_named(
    record: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=r"train\.jsonl:4: .*" + message):
        parse(record)


@pytest.mark.parametrize("nothing", [None, "", []])
def test_empty_keys_say_nothing(nothing: object) -> None:
    record = {"prompt": "a", "response": "b", "system": nothing, "id": nothing}
    assert parse(record).messages == (Message("user", "a"), Message("assistant", "b"))
    assert schema_of(row(record)).unread(row(record)) == []


def test_keys_that_nothing_reads_are_told() -> None:
    record: dict[str, object] = {"prompt": "a", "response": "b", "id": 3, "source": "web"}
    assert schema_of(row(record)).unread(row(record)) == ["id", "source"]


def test_tools_may_be_the_text_of_a_list() -> None:
    assert parse({"messages": [USER, ASSISTANT], "tools": '[{"name": "f"}]'}).tools == (
        {"name": "f"},
    )
