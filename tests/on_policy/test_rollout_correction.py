"""Answers that are not the policy's own: measured, made up for, or refused."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from alignctl.algorithms.mismatch import correct
from alignctl.config.on_policy import Trust
from alignctl.data.tokenizer import Tokenizer
from alignctl.errors import RunError
from alignctl.on_policy.rollout_correction import check
from alignctl.on_policy.samples import Samples
from tests.on_policy import scripted


@pytest.fixture
def samples(tokenizer: Tokenizer) -> Samples:
    """Answers of 2 and 3 tokens."""
    return scripted.samples(tokenizer, (0, 1, "22"), (1, 4, "555"))


def apart(samples: Samples, *distances: float) -> NDArray[np.float64]:
    return samples.logprobs + np.asarray(distances, np.float64)


def weights_of(
    logprobs: NDArray[np.float64], samples: Samples, settings: Trust
) -> list[float] | None:
    trainer, sampler = torch.from_numpy(logprobs), torch.from_numpy(samples.logprobs)
    weights, _ = correct(trainer, sampler, samples.segments, settings)
    return None if weights is None else weights.tolist()


def test_the_same_log_probabilities_need_no_correction(samples: Samples) -> None:
    found = check(samples.logprobs, samples, Trust())
    assert found.mask is None
    assert weights_of(samples.logprobs, samples, Trust()) == [1.0] * 5
    assert found.metrics["mismatch_max_difference"] == 0
    assert found.metrics["mismatch_mean_ratio"] == 1


def test_weights_are_ratios_up_to_the_cap(samples: Samples) -> None:
    """Trainer over sampler: e^0.5 = 1.65 counts, e^1 = 2.72 is cut at 2, e^-1 stays."""
    settings = Trust(max_difference=1.0)
    distances = apart(samples, 0.5, 1.0, -1.0, 0.0, 0.0)
    found = check(distances, samples, settings)
    assert weights_of(distances, samples, settings) == pytest.approx(
        [math.exp(0.5), 2, math.exp(-1), 1, 1]
    )
    assert found.metrics["mismatch_mean_difference"] == pytest.approx(0.5)
    assert found.metrics["mismatch_max_difference"] == pytest.approx(1.0)


def test_masks_leave_tokens_or_whole_answers_out(samples: Samples) -> None:
    """Ratios e^-1 = 0.37 and 1; the first answer's geometric mean is e^-0.5 = 0.61."""
    distances = apart(samples, -1.0, 0.0, 0.0, 0.0, 0.0)
    for correction, low, expected in (
        ("mask_tokens", 0.5, [False, True, True, True, True]),
        ("mask_samples", 0.5, [True] * 5),
        ("mask_samples", 0.7, [False, False, True, True, True]),
    ):
        settings = Trust.model_validate(
            {"correction": correction, "low": low, "max_difference": 1.0}
        )
        found = check(distances, samples, settings)
        assert weights_of(distances, samples, settings) is None
        assert found.mask is not None
        assert found.mask.tolist() == expected
        share = expected.count(False) / 5
        assert found.metrics["mismatch_masked"] == pytest.approx(share)


def test_none_corrects_nothing(samples: Samples) -> None:
    distances, settings = apart(samples, 0.1, 0, 0, 0, 0), Trust(correction="none")
    assert check(distances, samples, settings).mask is None
    assert weights_of(distances, samples, settings) is None


@pytest.mark.parametrize("first", [0.6, float("nan"), float("inf"), -float("inf")])
def test_a_difference_above_the_threshold_stops_the_run(samples: Samples, first: float) -> None:
    """0.6 over five tokens is 0.12 on average; a NaN must not pass for a small number."""
    with pytest.raises(RunError, match=r"trust.max_difference is 0.1") as caught:
        check(apart(samples, first, 0, 0, 0, 0), samples, Trust())
    assert caught.value.hint is not None
    assert "temperature" not in caught.value.hint
    check(apart(samples, 0.4, 0, 0, 0, 0), samples, Trust())


def test_segments_are_those_of_the_answers(samples: Samples) -> None:
    assert samples.segments.offsets.tolist() == [0, 2, 5]
    assert samples.segments.sums(torch.ones(5)).tolist() == [2, 3]
