"""Streaming rows of preferences into groups: what is kept, what is counted, what is selected."""

from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignctl.config.data import Select, Truncation
from alignctl.data.documents import DocumentWriter, Recipe
from alignctl.data.packing import starts
from alignctl.data.preference_documents import (
    DROPPED,
    PreferenceRecipe,
    PreferenceTally,
    stream,
)
from alignctl.data.store import ArrayWriter
from alignctl.data.text.templates import Renderer
from alignctl.data.tokenizer import Tokenizer
from alignctl.errors import UserError
from tests.data.conftest import MakeTokenizer
from tests.data.test_templates import CHATML, NO_EOS

WriteRows = Callable[..., Path]
Groups = list[list[tuple[str, str, float]]]


def run(
    file: Path,
    tokenizer: Tokenizer,
    *,
    window: int = 40,
    truncation: Truncation = "keep_response",
    max_response: int | None = None,
    select: Select = "firstk",
) -> tuple[PreferenceTally, Groups]:
    """The counts; and of each group its documents' prompts, answers and scores, as text."""
    folder = file.parent
    recipe = PreferenceRecipe(
        Recipe(Renderer("auto", tokenizer), tokenizer, truncation, window), max_response, select
    )
    with (
        DocumentWriter(folder, [file]) as writer,
        closing(ArrayWriter(folder / "scores.npy", np.float64)) as scores,
    ):
        tally = stream([file], recipe, writer, scores, lambda rows: None)
    if not tally.groups:
        return tally, []
    tokens, supervised = (np.load(folder / f"{name}.npy") for name in ("tokens", "supervised"))
    offsets = starts(np.concatenate(tally.lengths))
    documents = []
    for start, end, score in zip(
        offsets, offsets[1:], np.load(folder / "scores.npy").tolist(), strict=False
    ):
        first = start + int(supervised[start:end].argmax())
        assert supervised[first:end].all()
        prompt, answer = (tokenizer.decode(tokens[a:b]) for a, b in ((start, first), (first, end)))
        documents.append((prompt, answer, score))
    bounds = starts(np.concatenate(tally.sizes)).tolist()
    return tally, [documents[a:b] for a, b in pairwise(bounds)]


def scored(*answers: tuple[str, float], query: str = "q") -> dict[str, object]:
    return {"prompt": query, "response": [a for a, _ in answers], "score": [s for _, s in answers]}


def pair(chosen: str, rejected: str, prompt: str = "q:") -> dict[str, object]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_every_answer_follows_its_prompt_and_ends_with_eos(
    make_tokenizer: MakeTokenizer, write_rows: WriteRows
) -> None:
    _, groups = run(write_rows([pair("ab", "c"), pair("d", "e")]), make_tokenizer(bos=True))
    assert groups == [
        [("<s>q:", "ab</s>", 1), ("<s>q:", "c</s>", 0)],
        [("<s>q:", "d</s>", 1), ("<s>q:", "e</s>", 0)],
    ]


def test_only_the_last_turn_of_hh_text_is_an_answer(
    make_tokenizer: MakeTokenizer, write_rows: WriteRows
) -> None:
    prompt = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    file = write_rows([{"chosen": prompt + " d", "rejected": prompt + " e"}])
    _, groups = run(file, make_tokenizer(), window=90)
    assert groups == [[(prompt, " d</s>", 1), (prompt, " e</s>", 0)]]


@pytest.mark.parametrize(
    ("template", "prompt", "space", "end"),
    [
        (CHATML, "<|user|>a</s>\n<|assistant|>", "", "</s>"),
        (NO_EOS, "user: a\nassistant:", " ", "\n</s>"),
    ],
    ids=["with EOS", "without EOS"],
)
def test_chats_are_written_by_the_template_and_end_with_one_eos(
    make_tokenizer: MakeTokenizer,
    write_rows: WriteRows,
    template: str,
    prompt: str,
    space: str,
    end: str,
) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    other = [turns[0], {"role": "assistant", "content": "c"}]
    file = write_rows([{"chosen": turns, "rejected": other}])
    tally, groups = run(file, make_tokenizer(chat_template=template))
    assert groups == [[(prompt, f"{space}b{end}", 1), (prompt, f"{space}c{end}", 0)]]
    assert tally.without_eos == 0


ROWS = {
    "blank": pair("a", " \n"),
    "other_prompt": {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "Assistant: c"},
    "identical": pair("a", "a"),
    "tied": scored(("a", 0.5), ("b", 0.5)),
    "one": scored(("a", 1.0)),
    "none": scored(),
    "human": {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "rejected": "\n\nHuman: a"},
}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("blank", "single"),
        ("other_prompt", "other_prompt"),
        ("identical", "identical"),
        ("tied", "tied"),
        ("one", "single"),
        ("none", "single"),
        ("human", "single"),
    ],
)
def test_rows_that_compare_nothing_are_dropped_and_counted(
    make_tokenizer: MakeTokenizer, write_rows: WriteRows, row: str, reason: str
) -> None:
    tally, groups = run(write_rows([ROWS[row]] * 3), make_tokenizer())
    assert groups == []
    assert tally.dropped == {reason: 3}
    assert tally.in_words() == f"3 rows read, 3 dropped: {DROPPED[reason]}"


def test_answers_that_tie_or_repeat_stay_out_of_a_group_with_others(
    make_tokenizer: MakeTokenizer, write_rows: WriteRows
) -> None:
    """Of equal answers the first stays; ties stay too, since each is worse or better than others:
    of 3, 1 and 1 there are two pairs."""
    row = scored(("a", 1.0), ("b", 3.0), ("a", 9.0), ("", 2.0), ("c", 1.0))
    tally, groups = run(write_rows([row]), make_tokenizer())
    assert [[document[1:] for document in group] for group in groups] == [
        [("a</s>", 1), ("b</s>", 3), ("c</s>", 1)]
    ]
    assert np.concatenate(tally.pairs).tolist() == [2]
    assert not tally.dropped


@pytest.mark.parametrize(("select", "taken"), [("firstk", "ab"), ("topk", "bd"), ("random", None)])
def test_as_many_answers_as_wanted_are_taken(
    make_tokenizer: MakeTokenizer, write_rows: WriteRows, select: Select, taken: str | None
) -> None:
    """In the order of the row; of the two with score 2 the first is above."""
    row = scored(("a", 0.0), ("b", 2.0), ("c", 1.0), ("d", 3.0), ("e", 2.0))
    _, groups = run(write_rows([row]), make_tokenizer(), max_response=2, select=select)
    answers = "".join(answer.removesuffix("</s>") for _, answer, _ in groups[0])
    assert len(answers) == 2
    assert answers == (taken or "".join(sorted(answers)))


def test_random_answers_are_the_same_ones_whatever_their_place_and_not_always_the_first(
    make_tokenizer: MakeTokenizer, write_rows: WriteRows
) -> None:
    answers = [("a", 0.0), ("b", 2.0), ("c", 1.0), ("d", 3.0)]
    rows = [scored(*answers, query=f"{n}:") for n in range(30)]
    turned = [scored(*answers[::-1], query=f"{n}:") for n in range(30)][::-1]
    found = []
    for name, each in (("a", rows), ("b", turned)):
        _, groups = run(
            write_rows(each, f"{name}/train.jsonl"),
            make_tokenizer(),
            max_response=2,
            select="random",
        )
        found.append(sorted(document for group in groups for document in group))
    assert found[0] == found[1]
    assert {answer for _, answer, _ in found[0]} == {"a</s>", "b</s>", "c</s>", "d</s>"}


@pytest.mark.parametrize(
    ("truncation", "expected", "truncated", "too_long", "without_eos"),
    [
        # A window of 6. Row 1 fits. Row 2: prompt 5, answers 1 and 2 with EOS 2 and 3. Row 3: an
        # answer of 9 with EOS leaves 1 of context and 5 of answer, and b</s> keeps its EOS.
        ("keep_response", ["q:", "345", "4"], 2, 0, 1),
        ("left", ["q:", "345"], 1, 1, 0),
        ("right", ["q:", "12345"], 1, 1, 2),
        ("drop", ["q:"], 0, 2, 0),
    ],
)
def test_rows_that_are_too_long_are_cut_alike_or_dropped_and_counted(
    make_tokenizer: MakeTokenizer,
    write_rows: WriteRows,
    truncation: Truncation,
    expected: list[str],
    truncated: int,
    too_long: int,
    without_eos: int,
) -> None:
    rows = [pair("a", "b"), pair("a", "bc", "12345"), pair("aaaaaaaa", "b", "1234")]
    if truncation == "right":  # the third row's prompt, which is as long as the window
        rows[2] = pair("a", "b", "123456")
    tally, groups = run(write_rows(rows), make_tokenizer(), window=6, truncation=truncation)
    assert [group[0][0] for group in groups] == expected
    assert all(group[0][0] == document[0] for group in groups for document in group)
    assert (tally.truncated, tally.dropped["too_long"]) == (truncated, too_long)
    assert tally.without_eos == without_eos
    assert max(np.concatenate(tally.lengths)) <= 6


def test_answers_that_are_the_same_after_the_cut_are_dropped(
    make_tokenizer: MakeTokenizer, write_rows: WriteRows
) -> None:
    file = write_rows([pair("aaaaaaaab", "aaaaaaaac")])
    tally, groups = run(file, make_tokenizer(), window=6)
    assert groups == []
    assert tally.dropped == {"identical": 1}


def test_a_row_of_another_schema_is_named(
    make_tokenizer: MakeTokenizer, write_rows: WriteRows
) -> None:
    file = write_rows([pair("a", "b"), scored(("a", 1.0), ("b", 0.0))])
    with pytest.raises(UserError, match=r"train\.jsonl:2: no key 'chosen'"):
        run(file, make_tokenizer())


ANSWERS = st.lists(
    st.tuples(
        st.sampled_from(["", "a", "b", "ab", "abcdefgh", "x" * 20]), st.sampled_from([0, 1, 2])
    ),
    max_size=4,
)


@given(st.lists(ANSWERS, min_size=1, max_size=8), st.integers(4, 20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_is_kept_or_counted_and_every_group_has_a_pair(
    tmp_path_factory: pytest.TempPathFactory,
    make_tokenizer: MakeTokenizer,
    write_rows: WriteRows,
    rows: list[list[tuple[str, float]]],
    window: int,
) -> None:
    file = write_rows([scored(*answers, query="123") for answers in rows])
    tally, groups = run(file, make_tokenizer(), window=window)
    assert tally.rows == len(rows) == len(groups) + sum(tally.dropped.values())
    for group in groups:
        assert len({prompt for prompt, _, _ in group}) == 1
        assert len({answer for _, answer, _ in group}) == len(group) >= 2
        assert len({score for _, _, score in group}) >= 2
