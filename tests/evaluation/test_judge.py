from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignctl.errors import AlignctlError, RunError, UserError
from alignctl.evaluation.mt_bench import judge_endpoint
from alignctl.evaluation.mt_bench.judge import Answers, ask_all, look
from alignctl.evaluation.mt_bench.judge_endpoint import Endpoint
from alignctl.evaluation.mt_bench.judge_prompts import Prompt
from alignctl.evaluation.mt_bench.replies import Reply, open_cache
from tests.evaluation.judge_server import (
    COMPLETION_TOKENS,
    MODEL,
    PROMPT_TOKENS,
    Act,
    Judge,
    serving,
)

KEY = "sk-secret-0123456789"


def prompts(number: int) -> list[Prompt]:
    return [Prompt("t", "You judge.", f"prompt number {n} of a test") for n in range(number)]


def endpoint(server: Judge, **changes: Any) -> Endpoint:
    usual = Endpoint(MODEL, server.url, KEY, timeout_seconds=60.0, first_wait_seconds=0.02)
    return replace(usual, **changes)


def ask(server: Judge, file: Path, asked: Sequence[Prompt], **changes: Any) -> Answers:
    heard: list[Reply] = []
    with open_cache(file) as cache:
        found = ask_all(endpoint(server, **changes), asked, cache, heard.append)
    assert len(heard) == found.num_asked
    return found


FAILURES = (
    Act(429, body=b'{"error": {"message": "slow down"}}', headers={"Retry-After": "0.05"}),
    Act(429, body=b'{"error": {"message": "slow down"}}', headers={"Retry-After": "soon"}),
    Act(500, body=b"boom"),
    Act(503, body=b'["not", "an", "object"]'),
    Act(None),
    Act(is_cut=True),
    Act(body=b'{"choices": [{"mess'),
    Act(body=b""),
    Act(body=b"\xff\xfe\x00"),
    Act(body=b'{"choices": []}'),
    Act(body=b'{"choices": [{"message": {"content": 5}}]}'),
    Act(body=b'{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": -5}}'),
    Act(body=b"[]"),
)


def test_every_failure_that_may_pass_is_repeated_until_it_has(tmp_path: Path) -> None:
    """Each prompt meets one kind of failure, twice; the third attempt succeeds."""
    asked = prompts(len(FAILURES))
    kinds = dict(zip([p.user for p in asked], FAILURES, strict=True))
    good = Act(text="[[5]]")
    with serving(lambda prompt, number: kinds[prompt] if number <= 2 else good) as server:
        found = ask(server, tmp_path / "c.jsonl", asked, concurrency=len(FAILURES))
    assert set(server.attempts.values()) == {3}
    assert not found.refused
    assert not found.failed
    assert {reply.text for reply in found.replies.values()} == {"[[5]]"}
    assert {r.prompt_tokens for r in found.replies.values()} == {PROMPT_TOKENS}
    assert {r.completion_tokens for r in found.replies.values()} == {COMPLETION_TOKENS}


def test_a_judge_that_is_too_slow_is_asked_again(tmp_path: Path) -> None:
    """Only the first attempt is slower than the limit for sure, on whatever machine."""
    with serving(lambda prompt, number: Act(seconds=2.0 if number == 1 else 0.0)) as server:
        found = ask(server, tmp_path / "c.jsonl", prompts(1), timeout_seconds=1.0, num_attempts=50)
    assert set(server.attempts.values()) != {1}
    assert [reply.text for reply in found.replies.values()] == ["Good. Rating: [[5]]"]


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    with serving(lambda prompt, number: Act(text=prompt)) as server:
        first = ask(server, tmp_path / "c.jsonl", prompts(20)[:15] * 2)
        second = ask(server, tmp_path / "c.jsonl", prompts(20))
        third = ask(server, tmp_path / "c.jsonl", prompts(20))
    assert set(server.attempts.values()) == {1}
    assert (first.num_asked, second.num_asked, third.num_asked) == (15, 5, 0)
    assert sorted(r.text for r in third.replies.values()) == sorted(p.user for p in prompts(20))


def test_no_more_requests_are_in_work_than_allowed(tmp_path: Path) -> None:
    with serving(lambda prompt, number: Act(seconds=0.02)) as server:
        ask(server, tmp_path / "c.jsonl", prompts(30), concurrency=3)
    assert server.most_at_once == 3


def test_a_prompt_that_never_succeeds_is_told_and_the_others_are_kept(tmp_path: Path) -> None:
    asked = prompts(6)
    with serving(lambda p, n: Act(500, body=b"") if p == asked[2].user else Act()) as server:
        found = ask(server, tmp_path / "c.jsonl", asked, num_attempts=3)
        assert server.attempts[asked[2].user] == 3
        assert list(found.failed.values()) == ["500: Error code: 500"]
        assert len(found.replies) == 5
    with serving(lambda prompt, number: Act()) as server:
        assert ask(server, tmp_path / "c.jsonl", asked).num_asked == 1


def test_a_prompt_that_is_refused_is_not_repeated(tmp_path: Path) -> None:
    """A server that repeats prompts in its complaint is not repeated in ours."""
    asked = prompts(6)
    said = f'{{"error": {{"message": "too long: {asked[2].user} \\u001b[31m {KEY}"}}}}'.encode()
    with serving(lambda p, n: Act(400, body=said) if p == asked[2].user else Act()) as server:
        found = ask(server, tmp_path / "c.jsonl", asked)
    assert server.attempts[asked[2].user] == 1
    assert not found.failed
    assert list(found.refused.values()) == ["400: Error code: 400 - too long: ... [31m ***"]


@pytest.mark.parametrize(
    ("act", "kind", "message"),
    [
        (Act(401, body=f'{{"error": {{"message": "bad {KEY}"}}}}'.encode()), UserError,
         "does not accept the key of OPENAI_API_KEY: 401: Error code: 401 - bad ***"),
        (Act(404, body=b"{}"), UserError, f"has no judge '{MODEL}'"),
        (Act(429, body=b'{"error": {"message": "no", "code": "insufficient_quota"}}'), RunError,
         "out of quota"),
    ],
)  # fmt: skip
def test_what_concerns_all_requests_ends_them(
    tmp_path: Path, act: Act, kind: type[AlignctlError], message: str
) -> None:
    with serving(lambda prompt, number: act) as server, pytest.raises(kind) as caught:
        ask(server, tmp_path / "c.jsonl", prompts(50), concurrency=2)
    assert message in caught.value.message
    assert KEY not in f"{caught.value.message} {caught.value.hint}"
    assert sum(server.attempts.values()) <= 4


def test_a_server_that_has_gone_is_not_asked_for_ever(tmp_path: Path) -> None:
    with serving(lambda prompt, number: Act(None)) as server, pytest.raises(RunError) as caught:
        ask(server, tmp_path / "c.jsonl", prompts(50), num_attempts=2, concurrency=4)
    assert "8 requests in a row got no answer" in caught.value.message
    assert "the connection failed" in caught.value.message
    assert sum(server.attempts.values()) <= 2 * 12


def test_failures_in_a_row_are_forgotten_when_one_succeeds(tmp_path: Path) -> None:
    with serving(lambda p, n: Act(400, body=b"") if int(p.split()[2]) % 8 else Act()) as server:
        found = ask(server, tmp_path / "c.jsonl", prompts(40), concurrency=1)
    assert (len(found.replies), len(found.refused)) == (5, 35)


def test_an_answer_in_drops_is_given_up_at_the_limit(tmp_path: Path) -> None:
    """No single read takes long; a client's usual time-out would wait for 200 bytes x 0.05 s."""
    with serving(lambda prompt, number: Act(seconds_per_byte=0.05)) as server:
        found = ask(server, tmp_path / "c.jsonl", prompts(1), timeout_seconds=0.2, num_attempts=2)
    assert list(found.failed.values()) == ["no answer within 0.2 s"]


def test_the_key_goes_to_the_server(tmp_path: Path) -> None:
    with serving(lambda prompt, number: Act()) as server:
        look(endpoint(server))
        ask(server, tmp_path / "c.jsonl", prompts(1))
    assert server.keys == {f"Bearer {KEY}"}
    assert KEY not in repr(endpoint(server))


@pytest.mark.parametrize(
    ("models", "remark"),
    [
        (Act(body=b'{"data": [{"id": "tests/judge"}]}'), None),
        (Act(body=b'{"data": [{"id": "tests/jugde"}]}'), "did you mean tests/jugde?"),
        (Act(body=b'{"data": [{"id": "gpt"}]}'), "it lists gpt"),
        (Act(body=b'{"data": []}'), None),
        (Act(body=b"nonsense"), None),
        (Act(404, body=b""), None),
        (Act(500, body=b""), None),
    ],
)
def test_a_look_at_the_server_finds_a_misspelt_judge(models: Act, remark: str | None) -> None:
    with serving(lambda prompt, number: Act(), models) as server:
        found = look(endpoint(server))
    assert found is None if remark is None else remark in str(found)


def test_a_look_finds_that_nobody_is_there_or_that_the_key_is_wrong() -> None:
    refusing = serving(lambda prompt, number: Act(), Act(401, body=b""))
    with refusing as server, pytest.raises(UserError, match="does not accept the key"):
        look(endpoint(server))
    with pytest.raises(UserError, match="no judge is at http"):
        look(endpoint(server))
    dropping = serving(lambda prompt, number: Act(), Act(None))
    with dropping as server, pytest.raises(UserError, match="no judge is at http"):
        look(endpoint(server))


def made(url: str, *parameters: str, needs_key: bool = True) -> Endpoint:
    limits: dict[str, Any] = {"concurrency": 1, "timeout_seconds": 1.0, "num_attempts": 1}
    return judge_endpoint.endpoint(
        MODEL, url, "OPENAI_API_KEY", parameters, needs_key=needs_key, **limits
    )


@pytest.fixture
def _without_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.mark.usefixtures("_without_key")
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000", "--judge-url 'localhost:8000' is not one of http:// or https://"),
        ("ftp://localhost", "is not one of"),
        ("http://", "is not one of"),
        ("http://localhost:port/v1", "is not one of"),
        ("http://localhost/v 1", "--judge-url holds a character that no URL has"),
        ("http://me:secret@localhost/v1", "may not hold a user"),
        ("me:secret@localhost", "is not one of"),
        ("http://localhost/v1?api-key=secret", "may not hold"),
        (judge_endpoint.OPENAI_URL, "the variable OPENAI_API_KEY is not set"),
    ],
)
def test_a_bad_url_is_told_and_no_password_is_shown(url: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        made(url)
    assert message in caught.value.message
    assert "secret" not in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.usefixtures("_without_key")
def test_who_asks_nothing_needs_no_key() -> None:
    assert made(judge_endpoint.OPENAI_URL, needs_key=False).url == judge_endpoint.OPENAI_URL


@pytest.mark.usefixtures("_without_key")
def test_parameters_go_beside_fastchats_or_in_their_place() -> None:
    url = "http://localhost:1/v1/"
    assert made(url).parameters == {"temperature": 0, "max_tokens": 2048}
    assert made(url).url == "http://localhost:1/v1"
    found = made(url, "max_tokens=null", "temperature=0.5", "seed=7", "effort=high", "a=[1]")
    assert found.parameters == {"temperature": 0.5, "seed": 7, "effort": "high", "a": [1]}
    for bad in ("temperature", "=1", "model=other", "n=2"):
        with pytest.raises(UserError, match="--judge-parameter"):
            made(url, bad)


def test_a_key_with_a_line_break_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-one\nsk-two")
    with pytest.raises(UserError) as caught:
        made("http://localhost:1/v1")
    assert "sk-" not in caught.value.message
