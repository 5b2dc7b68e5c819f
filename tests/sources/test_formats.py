from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignctl.data.rows.files import Row
from alignctl.data.rows.preference_schemas import preference_schema_of
from alignctl.data.rows.prompt_schemas import prompt_schema_of
from alignctl.data.rows.schemas import Schema, schema_of
from alignctl.errors import UserError
from alignctl.rewards.math_rule import math_rule
from alignctl.sources.formats import FORMATS, Kind, Made, Name, check_keys

PARSERS: dict[Kind, list[Callable[[Row], Schema[Any]]]] = {
    "sft": [schema_of],
    "reward": [preference_schema_of],
    "alignment": [preference_schema_of, prompt_schema_of],
    "math": [prompt_schema_of],
}
HH = "\n\nHuman: Why?\n\nAssistant: Hm?\n\nHuman: Why, I ask.\n\nAssistant:"
EXAMPLES: dict[Name, dict[str, object]] = {
    "hh": {"chosen": f"{HH} Because.", "rejected": f"{HH} No."},
    "gsm8k": {"question": "2 + 3?", "answer": "2 + 3 = <<2+3=5>>5\n#### 1,005"},
    "math": {"problem": "Half?", "solution": r"It is $\boxed{\frac{1}{2}}$.", "level": "1"},
    "alpaca": {"instruction": "Add.", "input": "2 3", "output": "5"},
    "sharegpt": {
        "conversations": [
            {"from": "gpt", "value": "I was cut."},
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello"},
            {"from": "human", "value": "Left open"},
        ]
    },
}


def row(record: dict[str, object]) -> Row:
    return Row(Path("a.jsonl"), 1, record)


def turns(*speakers: str) -> list[dict[str, str]]:
    return [{"from": speaker, "value": speaker} for speaker in speakers]


def made(name: Name, **changes: object) -> Made:
    result = FORMATS[name].convert(row({**EXAMPLES[name], **changes}))
    assert isinstance(result, Made), result
    return result


def reason(name: Name, **changes: object) -> str:
    result = FORMATS[name].convert(row({**EXAMPLES[name], **changes}))
    assert isinstance(result, str)
    return result


@pytest.mark.parametrize("name", FORMATS)
def test_the_stages_read_what_is_written(name: Name) -> None:
    rows = made(name).rows
    assert tuple(rows) == FORMATS[name].kinds
    for kind, record in rows.items():
        for schema in PARSERS[kind]:
            schema(row(record)).parse(row(record))


@pytest.mark.parametrize("kind", ["sft", "reward", "alignment"])
def test_hh_text_is_the_same_in_every_file(kind: Kind) -> None:
    """A prompt and its answer, put together as the stage does, are HH's own text again."""
    record = row(made("hh").rows[kind])
    if kind == "sft":
        texts = [schema_of(record).parse(record).own]
    else:
        texts = [answer.own for answer in preference_schema_of(record).parse(record).answers]
    whole = [text.text for text in texts if text is not None]
    assert whole == [f"{HH} Because.", f"{HH} No."][: len(texts)]


def test_gsm8ks_answer_is_its_last_number_and_its_calculations_go() -> None:
    rows = made("gsm8k").rows
    assert rows["math"]["answer"] == "1005"
    assert rows["math"]["prompt"] == "\n\nHuman: 2 + 3?\n\nAssistant: "
    assert rows["sft"] == {"query": "2 + 3?", "response": "2 + 3 = 5\n#### 1,005"}


def test_maths_answer_is_what_its_last_box_holds() -> None:
    assert made("math").rows["math"]["answer"] == r"\frac{1}{2}"


@pytest.mark.parametrize(
    ("solution", "expected"),
    [
        (r"The largest root is $\boxed 5$.", "5"),
        (r"It is $\boxed\frac72$.", r"\frac72"),
        (r"It is $\boxed{-2}$ or $\boxed{3}$.", "-2, 3"),
        (r"First $\boxed{3}$, so the area is $\fbox{9}$.", "9"),
    ],
)
def test_maths_answer_is_found_as_the_rule_finds_it(solution: str, expected: str) -> None:
    """TeX boxes the next token where there is no brace; the rule reads the solution's box alike."""
    assert made("math", solution=solution).rows["math"]["answer"] == expected
    assert math_rule(solution, expected) == "correct"


def test_a_heading_is_not_gsm8ks_mark() -> None:
    solution = "#### 2. Sum\n3 + 4 = 7"
    assert reason("gsm8k", answer=solution) == "no_final_answer"
    assert made("gsm8k", answer=f"{solution}\n#### 7").rows["math"]["answer"] == "7"


def test_a_conversation_goes_from_a_question_to_an_answer() -> None:
    assert made("sharegpt").rows["sft"]["messages"] == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ]


def test_a_system_turn_stays_in_front() -> None:
    turns = [{"from": f, "value": f} for f in ("system", "user", "chatgpt")]
    messages = made("sharegpt", conversations=turns).rows["sft"]["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("hh", {"rejected": "\n\nHuman: Who?\n\nAssistant: No."}, "other_prompt"),
        ("hh", {"rejected": f"{HH} Because."}, "identical"),
        ("hh", {"rejected": f"{HH} "}, "empty"),
        ("gsm8k", {"answer": "five"}, "no_final_answer"),
        ("gsm8k", {"answer": "five\n#### "}, "no_final_answer"),
        ("math", {"solution": "clear"}, "no_final_answer"),
        ("alpaca", {"output": " "}, "empty"),
        ("sharegpt", {"conversations": []}, "empty"),
        ("sharegpt", {"conversations": [{"from": "tool", "value": ""}]}, "turns"),
        ("sharegpt", {"conversations": turns("human", "human", "gpt")}, "turns"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(
    name: Name, changes: dict[str, object], expected: str
) -> None:
    assert reason(name, **changes) == expected


def test_a_turn_without_its_keys_names_them() -> None:
    with pytest.raises(UserError, match="no key 'value' in this row"):
        FORMATS["sharegpt"].convert(row({"conversations": [{"from": "human", "text": "Hi"}]}))


def test_rows_of_another_set_name_it() -> None:
    with pytest.raises(UserError, match="not a row of hh") as caught:
        check_keys(row(EXAMPLES["gsm8k"]), "hh")
    assert caught.value.hint == "did you mean alignctl prepare gsm8k?"


def test_what_stands_beside_a_conversation_is_taken_along() -> None:
    """The first two are honoured by fine-tuning, the weight too; the last one is counted."""
    context: dict[str, object] = {"system": "s", "tools": "[1]"}
    further: dict[str, object] = {"history": [["h", "i"]], "id": 7}
    alpaca = {"instruction": "a", "output": "b", **context, **further}
    kept = FORMATS["alpaca"].convert(row(alpaca))
    assert isinstance(kept, Made)
    del alpaca["id"]
    assert kept.rows["sft"] == {**alpaca, "input": ""}
    assert FORMATS["alpaca"].unread(row({**alpaca, "id": 7})) == ["id"]
    turns = [
        {"from": "human", "value": "a"},
        {"from": "gpt", "value": "b", "weight": 0, "reasoning_content": "r"},
    ]
    made_of = FORMATS["sharegpt"].convert(row({"conversations": turns, **context}))
    assert isinstance(made_of, Made)
    answer = {"role": "assistant", "content": "b", "weight": 0, "reasoning_content": "r"}
    assert made_of.rows["sft"] == {
        "messages": [{"role": "user", "content": "a"}, answer],
        **context,
    }
    conversation = schema_of(row(made_of.rows["sft"])).parse(row(made_of.rows["sft"]))
    assert [message.role for message in conversation.messages] == ["system", "user", "assistant"]
    assert not conversation.messages[-1].is_learned
