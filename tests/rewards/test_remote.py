"""A reward behind a URL: a real server on this machine that fails, drips, lies and is down."""

import socket

import pytest

from alignctl.config.rewards import RewardFunction
from alignctl.rewards.functions import Functions
from alignctl.rewards.results import Answer, Result
from tests.misbehaving_server import Act
from tests.rewards.reward_server import fail_every_tenth, serving


def score(url: str, count: int, **settings: object) -> list[Result]:
    entry = RewardFunction.model_validate({"url": url, **settings})
    with Functions([entry], 1) as functions:
        answers = [Answer(f"p{n}", "x" * n, {"n": n}) for n in range(count)]
        [found] = functions.results(answers)
    return found


def test_a_request_is_lists_of_one_and_its_answer_a_list_of_one() -> None:
    with serving(score=lambda request: [{"score": 1, "n": request["rows"][0]["n"]}]) as served:
        found = score(served.url, 3)
    assert [(each.score, each.metrics) for each in found] == [(1, {"n": n}) for n in range(3)]
    requests = sorted(served.requests, key=lambda each: str(each["prompts"]))
    assert requests == [
        {"prompts": [f"p{n}"], "completions": ["x" * n], "rows": [{"n": n}]} for n in range(3)
    ]


def test_a_batched_one_is_sent_64_at_a_time() -> None:
    with serving() as served:
        found = score(served.url, 100, batched=True)
    assert [each.score for each in found] == [n / 100 for n in range(100)]
    assert sorted(len(each["prompts"]) for each in served.requests) == [36, 64]


def test_every_tenth_request_fails_and_is_asked_again() -> None:
    with serving(fail_every_tenth) as served:
        found = score(served.url, 200)
    assert [each.score for each in found] == [n / 100 for n in range(200)]
    retries = sum(each.retries for each in found)
    assert 0 < retries <= 22
    assert len(served.requests) == 200 + retries


@pytest.mark.parametrize(
    ("act", "why", "attempts"),
    [
        (Act(status=500, body=b"broken"), "HTTP 500: broken", 3),
        (Act(status=429, body=b"busy"), "HTTP 429: busy", 3),
        (Act(status=404, body=b"not here"), "HTTP 404: not here", 1),
        (Act(status=302), "HTTP 302: ", 1),
        (Act(status=None), "RemoteDisconnected: ", 3),
        (Act(body=b"<html>"), "its answer is not JSON: ", 3),
        (Act(body=b"[1.0]"), 'its answer is not of the form {"scores": [...]}', 3),
        (Act(is_cut=True), "IncompleteRead: ", 3),
        (Act(seconds=2), "no answer in 0.3 s", 3),
        (Act(seconds_per_byte=0.05), "no answer in 0.3 s", 3),
    ],
)
def test_what_goes_wrong_is_told_after_its_attempts(act: Act, why: str, attempts: int) -> None:
    with serving(lambda *_: act) as served:
        [found] = score(served.url, 1, timeout_seconds=0.3)
    assert found.score is None
    assert found.failure is not None
    assert found.failure.startswith(why)
    assert found.failure.endswith(f"(asked {attempts} times)")
    assert found.retries == attempts - 1
    assert len(served.requests) == attempts


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"scores": [NaN]}', "score is nan, where a finite number"),
        (b'{"scores": [null]}', "score is None, where a finite number"),
        (b'{"scores": []}', "it returned 0 scores for 1 answers"),
        (b'{"scores": 1}', "it returned 1, where a list is expected"),
    ],
)
def test_a_score_that_is_none_is_not_asked_again(body: bytes, why: str) -> None:
    with serving(lambda *_: Act(body=body)) as served:
        [found] = score(served.url, 1)
    assert found.failure is not None
    assert found.failure.startswith(why)
    assert len(served.requests) == 1


def test_a_server_that_is_down_is_given_up_after_sixteen_answers() -> None:
    with socket.socket() as taken:  # a port that nobody listens at
        taken.bind(("127.0.0.1", 0))
        found = score(f"http://127.0.0.1:{taken.getsockname()[1]}/", 40)
    assert {each.score for each in found} == {None}
    assert found[0].failure is not None
    assert "Connection refused (asked 3 times)" in found[0].failure
    assert sum(each.retries for each in found) == 2 * 16
    assert found[-1].failure is not None
    assert found[-1].failure.startswith("not tried, as 16 others failed: ConnectionRefused")


def test_connections_are_kept_and_one_that_was_closed_meanwhile_is_no_failure() -> None:
    """The server counts connections: eight threads need at most eight for 200 requests.

    It closes each after a hundred answers, when nobody is asking.
    """
    with serving() as served:
        entry = RewardFunction.model_validate({"url": served.url})
        with Functions([entry], 1) as functions:
            answers = [Answer("p", "x" * n, {}) for n in range(100)]
            [first] = functions.results(answers)
            assert 1 <= served.num_connections <= 8
            served.hang_up()
            [second] = functions.results(answers)
    assert [each.score for each in first] == [each.score for each in second]
    assert sum(each.retries for each in second) == 0
    assert len(served.requests) == 200
