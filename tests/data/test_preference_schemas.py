"""Schemas of preferences: which answer follows which prompt, scores, and rows that are off."""

from pathlib import Path

import pytest

from alignctl.data.rows.files import Row
from alignctl.data.rows.messages import Message
from alignctl.data.rows.preference_schemas import Comparison, preference_schema_of
from alignctl.errors import UserError


def parse(record: dict[str, object]) -> Comparison:
    row = Row(Path("train.jsonl"), 3, record)
    return preference_schema_of(row).parse(row)


def texts(comparison: Comparison) -> list[str]:
    """The answers' own texts, a bar before the last turn that is learned."""
    found = []
    for answer in comparison.answers:
        assert answer.own is not None
        start = answer.own.spans[-1][0]
        found.append(answer.own.text[:start] + "|" + answer.own.text[start:])
    return found


def test_a_query_has_any_number_of_answers_with_scores() -> None:
    """Scores stay what they are: cast to integers, 0.7 and 0.2 would tie."""
    found = parse({"query": "Hi?", "response": ["a", "b", "c"], "score": [0.7, 0.2, -3]})
    assert texts(found) == [f"\n\nHuman: Hi?\n\nAssistant:| {answer}" for answer in "abc"]
    assert found.scores == (0.7, 0.2, -3.0)


@pytest.mark.parametrize("key", ["query", "prompt"])
@pytest.mark.parametrize("space", ["", " "])
def test_a_prompt_with_a_marker_of_its_own_ends_with_its_colon(space: str, key: str) -> None:
    """The tutorials' reward data: `query` is the whole prompt of Dahoas/rm-static."""
    prompt = "\n\nHuman: Hi?\n\nAssistant:"
    responses = ["a", "b"] if space else [" a", " b"]
    found = parse({key: prompt + space, "response": responses, "score": [1, 0]})
    assert texts(found) == [f"{prompt}| a", f"{prompt}| b"]


def test_a_prompt_with_scored_answers_stays_as_it_is() -> None:
    found = parse({"prompt": "1+1=", "response": ["2", "3"], "score": [1, 0]})
    assert texts(found) == ["1+1=|2", "1+1=|3"]


@pytest.mark.parametrize("better", ["chosen", "response"])
def test_a_pair_of_texts_follows_its_prompt(better: str) -> None:
    """`response` is the tutorials' alignment file."""
    found = parse({"prompt": "1+1=", better: "2", "rejected": "3"})
    assert texts(found) == ["1+1=|2", "1+1=|3"]
    assert found.scores == (1.0, 0.0)


def test_the_prompt_of_two_hh_texts_ends_at_the_last_assistant_marker() -> None:
    prompt = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    found = parse({"chosen": prompt + " yes, d", "rejected": prompt + " yes, e"})
    assert texts(found) == [f"{prompt}| yes, d", f"{prompt}| yes, e"]
    assert found.scores == (1.0, 0.0)


def test_an_answer_may_play_both_parts() -> None:
    """As some of Anthropic's do; where the texts part decides, not their own last marker."""
    prompt = "\n\nHuman: a\n\nAssistant:"
    found = parse({"chosen": prompt + " b", "rejected": prompt + " c\n\nAssistant: d"})
    assert texts(found) == [f"{prompt}| b", f"{prompt}| c\n\nAssistant: d"]
    assert [answer.messages[-1].content for answer in found.answers] == ["b", "c\n\nAssistant: d"]
    assert all(answer.messages[:-1] == (Message("user", "a"),) for answer in found.answers)


@pytest.mark.parametrize(
    "worse", ["\n\nAssistant: c", "\n\nAssistant: b\n\nHuman: a\n\nAssistant: c"]
)
def test_hh_texts_that_part_before_a_human_turn_have_two_prompts(worse: str) -> None:
    found = parse({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": worse})
    better, other = found.answers
    assert better.messages[:-1] != other.messages[:-1]


USER, GOOD, BAD = (
    {"role": "user", "content": "Hi?"},
    {"role": "assistant", "content": "Hello."},
    {"role": "assistant", "content": "What."},
)


@pytest.mark.parametrize(
    "record",
    [
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "Hi?", "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "Hi?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ],
    ids=["whole", "prompt of messages", "prompt of text", "whole beside a prompt"],
)
def test_chats_are_whole_or_follow_their_prompt(record: dict[str, object]) -> None:
    found = parse(record)
    assert [answer.messages for answer in found.answers] == [
        (Message("user", "Hi?"), Message("assistant", "Hello.")),
        (Message("user", "Hi?"), Message("assistant", "What.")),
    ]
    assert all(answer.own is None for answer in found.answers)
    assert found.characters == 2 * 3 + 6 + 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": [1]}, r"train\.jsonl:3: response has 2 entries and score has 1"),
        ({"score": [1, float("nan")]}, r"train\.jsonl:3: score\[1\] is nan, which orders no"),
        ({"score": [float("inf"), 1]}, r"score\[0\] is inf"),
        ({"score": [10**400, 1]}, r"score\[0\] is 1000"),
        ({"score": [1, True]}, r"score\[1\] is a boolean, where a number is expected"),
        ({"score": [1, "0"]}, r"score\[1\] is text, where a number is expected"),
        ({"score": [1, None]}, r"score\[1\] is null, where a number is expected"),
        ({"score": 1}, r"score is a number, where a list with one entry per answer"),
        ({"response": "b"}, r"response is text, where a list with one entry per answer"),
        ({"response": ["b", 2]}, r"response\[1\] is a number, where text is expected"),
    ],
)
def test_a_row_that_is_off_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse({"query": "a", "response": ["b", "c"], "score": [1, 0]} | change)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"chosen": "a", "rejected": ["b"]}, "rejected is a list, where text is expected"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "rejected is null, where text"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "no key 'prompt' in this row"),
        ({"chosen": [USER, {"role": 1}], "rejected": []}, r"chosen\[1\]\.role is a number"),
    ],
)
def test_other_rows_that_are_off_are_named_too(record: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=rf"train\.jsonl:3: {message}"):
        parse(record)


def test_a_row_of_fine_tuning_is_told_what_rows_have() -> None:
    with pytest.raises(UserError, match=r"keys of this row \(query, response\)") as caught:
        parse({"query": "a", "response": "b"})
    assert caught.value.hint is not None
    assert caught.value.hint.endswith("prompt + response + rejected; chosen + rejected")
