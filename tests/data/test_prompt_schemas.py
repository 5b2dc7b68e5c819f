"""Every schema of prompts: what is asked, the reference, and what is wrong with a row."""

from pathlib import Path

import pytest

from alignctl.data.rows.files import Row
from alignctl.data.rows.prompt_schemas import Question, lead, prompt_schema_of
from alignctl.data.rows.schemas import schema_of
from alignctl.errors import UserError


def parse(**record: object) -> Question:
    row = Row(Path("p.jsonl"), 3, record)
    return prompt_schema_of(row).parse(row)


def asked(question: Question) -> list[tuple[str, str]]:
    """The turns before the one that stands for the answer."""
    *turns, answer = question.conversation.messages
    assert answer.role == "assistant"
    return [(message.role, message.content) for message in turns]


def own_prompt(question: Question) -> str:
    own = question.conversation.own
    assert own is not None
    return own.text[: own.spans[-1][0]]


def test_a_prompt_stays_as_it_is_but_for_the_space_of_its_marker() -> None:
    """The space after `Assistant:` belongs to the answer, as in fine-tuning; others stay."""
    assert own_prompt(parse(prompt="\n\nHuman: Hi\n\nAssistant: ", response="ignored")) == (
        "\n\nHuman: Hi\n\nAssistant:"
    )
    assert own_prompt(parse(prompt="Q: Hi\nA: ")) == "Q: Hi\nA: "


def test_an_answer_takes_its_place_as_in_a_row_of_fine_tuning() -> None:
    """Also the white space between: what the marker lends the answer is written, and led."""
    question = parse(query="Hi")
    answered = question.answered("Yes.")
    row = Row(Path("t.jsonl"), 1, {"query": "Hi", "response": "Yes."})
    assert answered.own == schema_of(row).parse(row).own
    assert answered.messages[-1].content == "Yes."
    own = question.conversation.own
    assert own is not None
    assert lead(own) == " "


def test_a_query_is_wrapped() -> None:
    question = parse(query="Hi")
    assert own_prompt(question) == "\n\nHuman: Hi\n\nAssistant:"
    assert asked(question) == [("user", "Hi")]
    assert (question.answer, question.eval_func) == (None, None)


@pytest.mark.parametrize("key", ["messages", "prompt"])
def test_an_assistant_turn_at_the_end_of_a_chat_is_left_out(key: str) -> None:
    turns = [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c")]
    chat = [{"role": role, "content": content} for role, content in turns]
    assert asked(parse(**{key: chat})) == turns
    assert asked(parse(**{key: [*chat, {"role": "assistant", "content": "d"}]})) == turns


def test_gsm8k_rows_are_asked_as_chats_and_checked_by_the_rule() -> None:
    question = parse(question="How many?", answer="He has 70 + 2 = <<70+2=72>>72.\n#### 72")
    assert asked(question) == [("user", "How many?")]
    assert question.conversation.own is None
    assert (question.answer, question.eval_func) == ("72", "math_rule")


@pytest.mark.parametrize(
    ("answer", "reference"),
    [("72", "72"), (" 1/2 ", "1/2"), (72, "72"), (0.5, "0.5"), ("70 + 2\n#### 1,072", "1,072")],
)
def test_the_reference_is_the_answer_or_what_follows_its_mark(
    answer: object, reference: str
) -> None:
    """The tutorials' rows hold GSM8K's whole solution; nothing that a model writes equals that."""
    question = parse(prompt="p", answer=answer, eval_func="math_rule")
    assert (question.answer, question.eval_func) == (reference, "math_rule")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": " \n"}, "prompt is empty"),
        ({"query": ""}, "query is empty"),
        ({"question": "", "answer": "#### 1"}, "question is empty"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "messages is empty"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages is empty"),
        ({"question": "q", "answer": "72"}, "answer does not end in '#### N'"),
        ({"prompt": "p", "eval_func": "math_rule"}, "there is no answer to compare with"),
        ({"prompt": "p", "answer": "  "}, "answer is empty"),
        ({"prompt": "p", "answer": "so\n#### "}, "answer is empty after ####"),
        ({"prompt": "p", "answer": ["1"]}, "answer is a list, where text or a number is expected"),
        ({"prompt": "p", "answer": True}, "answer is a boolean"),
        ({"prompt": "p", "answer": "1", "eval_func": 7}, "eval_func is a number"),
        ({"prompt": 7}, "prompt is a number"),
        ({"text": "t"}, "a schema that is known"),
    ],
)
def test_what_is_wrong_with_a_row_is_told_with_its_line(
    record: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        parse(**record)
    assert caught.value.message.startswith("p.jsonl:3: ")
    assert message in caught.value.message
