"""Preparation of prompts as a whole: tokens, answers, limits, who is held out, and the folder."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignctl.config.on_policy import Prompts
from alignctl.data.order import step_sequences
from alignctl.data.prompt_store import PromptData
from alignctl.data.prompts import prepare
from alignctl.data.rows.messages import Message
from alignctl.data.rows.schemas import Conversation
from alignctl.data.text.masks import encode
from alignctl.data.text.templates import Renderer
from alignctl.data.tokenizer import Tokenizer
from alignctl.errors import UserError
from tests.data.conftest import MakeTokenizer

WriteRows = Callable[..., Path]
RULES = ("math_rule",)
CHATML = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)


def opened(tmp_path: Path, tokenizer: Tokenizer, **knobs: Any) -> PromptData:
    return PromptData.open(prepare(Prompts(**knobs), tokenizer, tmp_path / "data", RULES))


def texts(data: PromptData, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(data.prompts[i].tolist()) for i in range(len(data.prompts))]


def additions(num: int) -> list[dict[str, object]]:
    return [{"prompt": f"{n}+{n}=", "answer": 2 * n, "eval_func": "math_rule"} for n in range(num)]


def test_every_row_becomes_a_prompt(
    tmp_path: Path, make_tokenizer: MakeTokenizer, write_rows: WriteRows
) -> None:
    file = write_rows([*additions(3), {"prompt": "Hi"}])
    tokenizer = make_tokenizer(bos=True)
    data = opened(tmp_path, tokenizer, train=file)
    assert texts(data, tokenizer) == ["<s>0+0=", "<s>1+1=", "<s>2+2=", "<s>Hi"]
    assert data.answers == ["0", "2", "4", None]
    assert data.eval_funcs == ["math_rule"] * 3 + [None]
    assert data.train.tolist() == [0, 1, 2, 3]
    assert data.validation.tolist() == []
    assert data.where(3) == f"{file}:4"
    summary = data.summary
    assert (summary.rows, summary.train, summary.with_answer) == (4, 4, 3)
    assert summary.train_tokens == len(data.prompts.tokens)


@pytest.mark.parametrize(
    ("template", "chat_template", "expected"),
    [
        ("auto", None, "\n\nHuman: Q\n\nAssistant:"),
        ("hh", CHATML, "\n\nHuman: Q\n\nAssistant:"),
        ("auto", CHATML, "<user>Q</s><assistant>"),
        ("tokenizer", LLAMA2, "[INST] Q [/INST]"),
    ],
)
def test_a_template_writes_all_up_to_the_answer(
    tmp_path: Path,
    make_tokenizer: MakeTokenizer,
    write_rows: WriteRows,
    template: str,
    chat_template: str | None,
    expected: str,
) -> None:
    """With Llama 2's template the space before the answer is generated: fine-tuning learns it."""
    file = write_rows([{"messages": [{"role": "user", "content": "Q"}]}])
    tokenizer = make_tokenizer(chat_template=chat_template) if chat_template else make_tokenizer()
    data = opened(tmp_path, tokenizer, train=file, template=template)
    assert texts(data, tokenizer) == [expected]


@pytest.mark.parametrize("chat_template", [CHATML, LLAMA2, None])
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(question=st.text("abc?", min_size=1, max_size=9), answer=st.text("xyz", min_size=1))
def test_a_prompt_is_what_fine_tuning_puts_before_an_answer(
    tmp_path: Path,
    make_tokenizer: MakeTokenizer,
    write_rows: WriteRows,
    chat_template: str | None,
    question: str,
    answer: str,
) -> None:
    """Tokens of one byte straddle nothing, so what is not learned of a document is its prompt."""
    tokenizer = make_tokenizer(chat_template=chat_template) if chat_template else make_tokenizer()
    messages = (Message("user", question), Message("assistant", answer))
    written = Renderer("auto", tokenizer)(Conversation("here", messages, None))
    [document] = encode([written], tokenizer)
    file = write_rows([{"messages": [{"role": "user", "content": question}]}])
    prompt = opened(tmp_path, tokenizer, train=file).prompts[0]
    assert prompt.tolist() == document.tokens[~document.supervised].tolist()


def test_long_prompts_are_dropped_and_counted(
    tmp_path: Path, make_tokenizer: MakeTokenizer, write_rows: WriteRows
) -> None:
    file = write_rows([{"prompt": "abcd"}, {"prompt": "abcde"}, {"prompt": "ab"}])
    tokenizer = make_tokenizer()
    data = opened(tmp_path, tokenizer, train=file, max_prompt_length=4)
    assert texts(data, tokenizer) == ["abcd", "ab"]
    assert (data.summary.rows, data.summary.dropped, data.summary.cut) == (3, 1, 0)
    assert "1 dropped: longer than 4 tokens" in data.summary.describe()
    assert data.where(1) == f"{file}:3"


@pytest.mark.parametrize(("bos", "expected"), [(False, "bcde"), (True, "<s>cde")])
def test_or_cut_at_their_start_and_counted(
    tmp_path: Path,
    make_tokenizer: MakeTokenizer,
    write_rows: WriteRows,
    bos: bool,
    expected: str,
) -> None:
    file = write_rows([{"prompt": "abcde"}, {"prompt": "ab"}])
    tokenizer = make_tokenizer(bos=bos)
    data = opened(tmp_path, tokenizer, train=file, max_prompt_length=4, long_prompts="cut")
    assert texts(data, tokenizer)[0] == expected
    assert (data.summary.dropped, data.summary.cut) == (0, 1)
    assert "1 cut: longer than 4 tokens" in data.summary.describe()


def test_when_all_are_too_long_the_knob_is_named(
    tmp_path: Path, make_tokenizer: MakeTokenizer, write_rows: WriteRows
) -> None:
    file = write_rows([{"prompt": "abcde"}])
    with pytest.raises(UserError, match=r"all 1 rows are longer than data\.max_prompt_length, 4"):
        opened(tmp_path, make_tokenizer(), train=file, max_prompt_length=4)
    assert not [*(tmp_path / "data").iterdir()]


def test_a_rule_that_is_not_known_is_named_with_its_line(
    tmp_path: Path, make_tokenizer: MakeTokenizer, write_rows: WriteRows
) -> None:
    file = write_rows([*additions(1), {"prompt": "p", "answer": "1", "eval_func": "math_rul"}])
    with pytest.raises(UserError) as caught:
        opened(tmp_path, make_tokenizer(), train=file)
    assert caught.value.message == f"{file}:2: eval_func 'math_rul' is not a rule that is known"
    assert caught.value.hint == "did you mean math_rule? Known: math_rule"


def test_a_file_without_rows_is_refused(
    tmp_path: Path, make_tokenizer: MakeTokenizer, write_rows: WriteRows
) -> None:
    with pytest.raises(UserError, match="there is no row in it"):
        opened(tmp_path, make_tokenizer(), train=write_rows([]))


def test_a_validation_file_is_held_out(
    tmp_path: Path, make_tokenizer: MakeTokenizer, write_rows: WriteRows
) -> None:
    train = write_rows(additions(3))
    held_out = write_rows([{"query": "Q"}], "dev.jsonl")
    tokenizer = make_tokenizer()
    data = opened(tmp_path, tokenizer, train=train.parent, validation=held_out)
    assert data.train.tolist() == [0, 1, 2]
    assert data.validation.tolist() == [3]
    assert texts(data, tokenizer)[3] == "\n\nHuman: Q\n\nAssistant:"
    assert data.where(3) == f"{held_out}:1"


def test_a_share_is_held_out_with_all_rows_of_equal_prompts(
    tmp_path: Path, make_tokenizer: MakeTokenizer, write_rows: WriteRows
) -> None:
    rows = additions(20) + additions(20)
    tokenizer = make_tokenizer()
    data = opened(tmp_path, tokenizer, train=write_rows(rows), validation_fraction=0.2)
    prompts = texts(data, tokenizer)
    sides = [{prompts[i] for i in numbers} for numbers in (data.train, data.validation)]
    assert not sides[0] & sides[1]
    assert len(data.validation) == data.summary.validation == 8
    assert sorted([*data.train, *data.validation]) == [*range(40)]


def test_the_same_rows_are_prepared_once(
    tmp_path: Path, make_tokenizer: MakeTokenizer, write_rows: WriteRows
) -> None:
    file, tokenizer = write_rows(additions(3)), make_tokenizer()
    first = opened(tmp_path, tokenizer, train=file).folder
    assert opened(tmp_path, tokenizer, train=file).folder == first
    assert opened(tmp_path, tokenizer, train=file, max_prompt_length=99).folder != first


def test_the_order_takes_each_prompt_once_per_epoch_and_needs_no_state() -> None:
    order = partial(step_sequences, 10, global_batch_size=4)
    taken = [order(seed=3, step=step).tolist() for step in range(5)]
    flat = [place for step in taken for place in step]
    assert sorted(flat[:10]) == sorted(flat[10:]) == [*range(10)]
    assert flat[:10] != flat[10:]
    assert order(seed=3, step=4).tolist() == taken[4]
    assert order(seed=4, step=0).tolist() != taken[0]


def test_prompts_of_a_blend_lie_source_by_source(
    tmp_path: Path, make_tokenizer: MakeTokenizer, write_rows: WriteRows
) -> None:
    """Of 10 prompts two are held out; of the others a fifth part is from the first file."""
    a = write_rows([{"prompt": f"a{n}"} for n in range(5)], "a.jsonl")
    b = write_rows([{"prompt": f"b{n}"} for n in range(5)], "b.jsonl")
    settings, tokenizer = Prompts(blend={a: 1, b: 4}, validation_fraction=0.2), make_tokenizer()
    folder = prepare(settings, tokenizer, tmp_path / "data", RULES)
    data = PromptData.open(folder, settings.weights.values())
    names = [text[0] for text in texts(data, tokenizer)]
    assert names == ["a"] * 5 + ["b"] * 5
    of_a, of_b = data.summary.sources
    assert [names[number] for number in data.train] == ["a"] * of_a + ["b"] * of_b
    assert [share.taken for share in data.shares] == [2, 6]


def test_rows_are_kept_whole_where_they_are_wanted(
    tmp_path: Path, make_tokenizer: MakeTokenizer, write_rows: WriteRows
) -> None:
    """Held-out ones too, but for those that are dropped; otherwise neither rows nor another name.

    The third row is too long.
    """
    rows = [
        {"prompt": "a", "level": 3, "tags": ["x", None]},
        {"messages": [{"role": "user", "content": "no"}], "prompt": "caf\u00e9"},
        {"prompt": "long " * 40, "level": 9},
    ]
    held_out = [{"prompt": "b", "level": 5}]
    files = {
        "train": write_rows(rows, name="rows.jsonl"),
        "validation": write_rows(held_out, name="held.jsonl"),
        "max_prompt_length": 20,
    }
    tokenizer = make_tokenizer()
    settings = Prompts.model_validate(files)
    folder = prepare(settings, tokenizer, tmp_path / "data", RULES, keeps_rows=True)
    data = PromptData.open(folder)
    assert data.rows is not None
    assert data.rows.read([2, 0, 1]) == [
        ("b", held_out[0]),
        ("a", rows[0]),
        ("caf\u00e9", rows[1]),
    ]
    assert data.summary.unread == {}
    without = prepare(settings, tokenizer, tmp_path / "data", RULES)
    assert without != folder
    assert PromptData.open(without).rows is None
    assert not (without / "rows.jsonl").exists()
