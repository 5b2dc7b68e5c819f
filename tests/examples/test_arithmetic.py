import json
from pathlib import Path

import pytest
from arithmetic import (
    MAX_TURNS,
    NUMBERS,
    Addition,
    asked,
    chat_pairs,
    chats,
    question_pairs,
    questions,
    small,
    split,
    wordings,
    write_rows,
)
from hypothesis import given
from hypothesis import strategies as st

additions = st.builds(Addition, st.sampled_from(NUMBERS), st.sampled_from(NUMBERS))


@pytest.mark.parametrize(
    ("a", "b", "answer"),
    [
        (17, 25, "7+5=12, 1+2+1=4, so 42."),
        (13, 54, "3+4=7, 1+5=6, so 67."),
        (99, 99, "9+9=18, 9+9+1=19, so 198."),
        (3, 4, "3+4=7, 0+0=0, so 7."),
    ],
)
def test_the_answer_goes_digit_by_digit(a: int, b: int, answer: str) -> None:
    assert Addition(a, b).answer == answer


@given(additions)
def test_every_answer_is_right(each: Addition) -> None:
    assert each.is_answered_by(each.answer)
    assert each.answer.endswith(f" {each.a + each.b}.")


@pytest.mark.parametrize(
    ("a", "b", "answer"),
    [
        (17, 25, "7+5=12, 1+2=3, so 32."),
        (13, 54, "3+4=7, 1+5+1=7, so 77."),
        (99, 99, "9+9=18, 9+9=18, so 188."),
    ],
)
def test_a_wrong_answer_forgets_the_carry_or_has_one_too_many(a: int, b: int, answer: str) -> None:
    assert Addition(a, b).wrong_answer == answer


@given(additions)
def test_every_wrong_answer_is_wrong(each: Addition) -> None:
    assert not each.is_answered_by(each.wrong_answer)


@given(additions, st.integers(0, 1000))
def test_a_pair_holds_a_right_and_a_wrong_answer_to_one_question(each: Addition, seed: int) -> None:
    (pair,) = question_pairs([each], seed=seed)
    assert sorted(pair["score"]) == [0.0, 1.0]
    for text, score in zip(pair["response"], pair["score"], strict=True):
        assert each.is_answered_by(text) == bool(score)
    (chat,) = chat_pairs([each], seed=seed)
    assert chat["chosen"][0] == chat["rejected"][0]
    ends = [chat[name][1]["content"] for name in ("chosen", "rejected")]
    assert [each.is_answered_by(end) for end in ends] == [True, False]


def test_prompts_have_the_right_sum_and_the_rule() -> None:
    (row,) = asked([Addition(17, 25)], seed=1)
    assert (row["answer"], row["eval_func"]) == ("42", "math_rule")
    assert small([Addition(17, 25), Addition(42, 7), Addition(19, 19)]) == [
        Addition(42, 7),
        Addition(19, 19),
    ]


@pytest.mark.parametrize("reply", ["", "I do not know.", "so 43.", "42, no: 24"])
def test_a_wrong_reply_is_seen_as_wrong(reply: str) -> None:
    assert not Addition(17, 25).is_answered_by(reply)


def test_held_out_sums_are_in_no_training_row() -> None:
    train, held_out = split(held_out=300, seed=1)
    assert len(held_out) == 300
    assert len({*train, *held_out}) == len(NUMBERS) ** 2 == len(train) + len(held_out)


def test_the_same_seed_gives_the_same_rows() -> None:
    train, _ = split(held_out=10, seed=1)
    assert train == split(held_out=10, seed=1)[0] != split(held_out=10, seed=2)[0]
    assert [*questions(train, seed=3)] == [*questions(train, seed=3)]
    assert [*chats(train, seed=3)] == [*chats(train, seed=3)]


def test_both_schemas_hold_each_sum_once(tmp_path: Path) -> None:
    train, _ = split(held_out=9_900, seed=1)
    write_rows(tmp_path / "questions.jsonl", questions(train, seed=2))
    write_rows(tmp_path / "chats.jsonl", chats(train, seed=2))
    answers = [each.answer for each in train]
    rows = [json.loads(line) for line in (tmp_path / "questions.jsonl").open()]
    assert [row["response"] for row in rows] == answers
    talks = [json.loads(line)["messages"] for line in (tmp_path / "chats.jsonl").open()]
    assert [turn["content"] for talk in talks for turn in talk[1::2]] == answers
    assert {len(talk) // 2 for talk in talks} == set(range(1, MAX_TURNS + 1))


def test_the_tokenizer_is_trained_on_every_wording() -> None:
    """Three forms in two schemas."""
    texts = [*wordings([Addition(17, 25)])]
    assert len(set(texts)) == 6
    assert all("17+25" in text and "so 42." in text for text in texts)
