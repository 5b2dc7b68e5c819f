"""Templates that never end, run for real: the process that they run in is what is tested."""

import time
from pathlib import Path

import pytest

from alignctl.data.rows.messages import Message
from alignctl.data.rows.schemas import Conversation
from alignctl.data.text.template_process import template_process
from alignctl.data.text.templates import Renderer
from alignctl.errors import UserError
from tests.data.conftest import MakeTokenizer

CHAT = Conversation("rows.jsonl:7", (Message("user", "a"), Message("assistant", "b")), None)
_NESTED = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
        ("{{ 'a' * 10**10 }}", "too much memory"),
        ("{{ 'ab' * 10**8 }}", "writes more than"),
        ("{{ nope.a }}", "undefined"),
        ("{% endfor %}", "unknown tag"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "recursion"),
        ("{{ messages[0].content.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_what_a_template_raises_is_told_with_the_row(
    make_tokenizer: MakeTokenizer, template: str, words: str
) -> None:
    with pytest.raises(UserError, match=rf"^rows\.jsonl:7: the chat template of .*{words}"):
        Renderer("auto", make_tokenizer(chat_template=template))(CHAT)


@pytest.mark.parametrize("template", [_NESTED, "{{ 10 ** (10 ** 9) }}"])
def test_a_template_that_never_ends_is_ended(make_tokenizer: MakeTokenizer, template: str) -> None:
    """The kernel ends the process: no Python runs while a power is computed. The next one works."""
    render = Renderer("auto", make_tokenizer(chat_template=template))
    with pytest.raises(UserError, match=r"^rows\.jsonl:7: .*(more than 5 s|too much memory)"):
        render(CHAT)
    echo = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    assert Renderer("auto", make_tokenizer(chat_template=echo))(CHAT).text == "a</s>b</s>"


def test_answers_that_nobody_received_are_given_up(make_tokenizer: MakeTokenizer) -> None:
    """A preparation that failed between two batches leaves one behind."""
    echo = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    render = Renderer("auto", make_tokenizer(chat_template=echo))
    render.start([CHAT])
    other = Conversation("rows.jsonl:8", (Message("assistant", "c"),), None)
    assert render(other).text == "c</s>"
    process = template_process()
    assert render(CHAT).text == "a</s>b</s>"
    assert template_process() is process


def test_it_ends_with_the_object(make_tokenizer: MakeTokenizer) -> None:
    echo = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    Renderer("auto", make_tokenizer(chat_template=echo)).start([CHAT])
    pid = template_process()._process.pid  # a new one: the answers of the first are given up
    Renderer("auto", make_tokenizer(chat_template=echo)).start([CHAT])
    template_process()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
