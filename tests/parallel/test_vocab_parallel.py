"""Log-probabilities and entropies over a vocabulary cut in two, 13 tokens in 16 columns."""

from collections.abc import Callable

import pytest

from tests.parallel.cases import VOCAB_PARALLEL, Case
from tests.parallel.jobs import Result

pytestmark = pytest.mark.ci


@pytest.fixture
def found(result: Callable[[Case], Result]) -> Result:
    return result(VOCAB_PARALLEL)


def test_they_are_those_of_log_softmax_on_one_process(found: Result) -> None:
    """One row of logits is near 100, where a naive exponential overflows fp32."""
    assert found["dtype"] == "torch.float32"
    assert found["logprob_difference"] < 1e-5
    assert found["gradient_difference"] < 1e-5


def test_entropies_at_a_temperature_are_those_of_torch_on_one_process(found: Result) -> None:
    """Their gradient and that of the log-probabilities come out of one backward pass."""
    assert found["both_logprob_difference"] < 1e-5
    assert found["both_entropy_difference"] < 1e-6
    assert found["both_gradient_difference"] < 1e-5


def test_the_gradients_agree_with_finite_differences(found: Result) -> None:
    """At temperatures 1, 0.7 and 2, the last with all tokens on the first rank."""
    assert found["gradcheck"] == [True, True, True]


def test_padding_gets_neither_probability_nor_gradient(found: Result) -> None:
    """Padding logits of a million change nothing."""
    assert found["is_padding_ignored"] is True
    assert found["padding_gradient"] == 0


def test_the_most_likely_token_is_found_over_both_ranks(found: Result) -> None:
    assert found["hits_are_right"] is True
    assert found["is_temperature_no_matter_for_hits"] is True


def test_chunks_change_nothing(found: Result) -> None:
    assert found["is_chunking_invisible"] is True


def test_bf16_logits_are_worked_on_in_fp32(found: Result) -> None:
    """The gradient is rounded once, at the end: bf16 rounds by at most 1 part in 256."""
    assert found["bf16_dtype"] == "torch.float32"
    assert found["bf16_logprob_difference"] < 1e-5
    assert found["bf16_gradient_relative"] <= 2**-8
    assert found["bf16_both_gradient_relative"] <= 2**-8
