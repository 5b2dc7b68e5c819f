"""vLLM beside the trainer at many layouts: tokens, log-probabilities, pushes, failures."""

from collections.abc import Callable

import pytest

from tests.rollouts.cases import FAST, SLOW, Case
from tests.rollouts.jobs import Result

pytestmark = pytest.mark.ci

ALL = [
    *(pytest.param(case, id=case.name) for case in FAST),
    *(pytest.param(case, id=case.name, marks=pytest.mark.slow) for case in SLOW),
]
Results = Callable[[Case], Result]


@pytest.mark.parametrize("case", ALL)
def test_the_stream_of_weights_is_the_model_bit_by_bit(case: Case, result: Results) -> None:
    assert result(case)["different"] == []


@pytest.mark.parametrize("case", ALL)
def test_trainer_and_vllm_agree_before_and_after_pushes(case: Case, result: Results) -> None:
    """In between, with the weights of before the training, they do not."""
    found = result(case)
    for name in ("first", "second", "warm"):
        assert found[f"{name}_difference"] <= 1e-4, name
        assert found[f"{name}_mean"] < -0.1, name
    assert found["stale_difference"] > 1e-2
    assert found["second"] != found["first"]
    assert max(found["greedy_logprobs"]) < 1e-6  # of the only token there was
    assert found["version"] == 2


@pytest.mark.parametrize("case", ALL)
def test_the_same_seeds_give_the_same_tokens_and_leave_the_trainers_alone(
    case: Case, result: Results
) -> None:
    found = result(case)
    assert found["again"] == found["first"]
    assert len({tuple(tokens) for tokens in found["first"]}) == 24
    assert found["is_random_state_kept"]


@pytest.mark.parametrize("case", ALL)
def test_a_completion_ends_with_a_stop_token_or_at_its_length(case: Case, result: Results) -> None:
    found = result(case)
    assert {finish for finish, _ in found["finishes"]} == {"stop", "length"}
    for finish, tokens in found["finishes"]:
        assert not set(tokens[:-1]) & set(found["stop_tokens"])
        assert (tokens[-1] in found["stop_tokens"]) == (finish == "stop")
        assert finish == "stop" or len(tokens) == 8
    before = found["second"][0]
    end = next(place for place, token in enumerate(before) if token in found["stop_tokens"])
    assert found["finishes"][0] == ["stop", before[: end + 1]]


@pytest.mark.parametrize("case", ALL)
def test_what_fails_is_tried_again_and_counted_and_takes_nobody_with_it(
    case: Case, result: Results
) -> None:
    """Four requests fail twice. The one that breaks vLLM takes those with it, once, that are under
    way on the same replica: five at most."""
    found = result(case)
    alone, after = found["unpoisoned"]
    assert found["poisoned"] == [*alone[:3], *[None] * 4, *alone[3:]]
    assert after == alone
    retried, failed = found["poisoned_counts"]
    assert failed == 4
    assert 4 < retried <= 9


@pytest.mark.parametrize("case", ALL)
def test_a_crowd_of_prompts_is_read_at_the_first_attempt(case: Case, result: Results) -> None:
    """On a CPU vLLM fails where it reads a prompt in two parts."""
    assert result(case)["crowded_counts"] == [0, 0]


@pytest.mark.parametrize("case", ALL)
def test_incomplete_and_spoilt_pushes_are_errors(case: Case, result: Results) -> None:
    found = result(case)
    assert "have to be pushed" in found["before_any_push"]
    assert "lacks" in found["lacking"]
    assert "have to be pushed" in found["after_lacking"]
    assert "1 of " in found["spoilt"]
    assert "layers.1.mlp" in found["spoilt"] or "h.1.mlp" in found["spoilt"]


def test_one_and_two_replicas_say_the_same(result: Results) -> None:
    """TP, and adapters that are still zero, change logits in the last bits only."""
    one = result(Case(model="llama-gqa"))
    two = result(Case(model="llama-gqa", world=2, tp=2, has_lora=True))
    assert one["first"] == two["first"]
