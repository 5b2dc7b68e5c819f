from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignctl.config.presets.load import load_preset
from alignctl.planning.cost import Job, count_flops, estimate, flops_per_token
from alignctl.planning.devices import device, device_called, devices
from benchmarks import step_time

LLAMA = load_preset("llama2-7b").model


@pytest.mark.parametrize("run", step_time.RUNS, ids=lambda run: f"{run.name} {run.job.gpus}")
def test_published_steps_are_met_within_20_percent(run: step_time.Run) -> None:
    cost = estimate(run.job, device(run.gpu))
    assert cost.seconds == pytest.approx(run.seconds, rel=0.2)


def test_a_forward_pass_is_two_operations_per_weight_and_attention() -> None:
    """Llama-2-7B without its embedding: 6.6e9 weights; attention 2 x 32 x 4096 x 4096 per token.

    4096 = 32 x 128: the vocabulary of 32,000 is padded to 32,000.
    """
    products, attention = flops_per_token(LLAMA, 4096)
    assert products == 2 * (6_738_415_616 - 32_000 * 4096 - 4096)
    assert attention == 2 * 32 * 4096 * 4096


@given(
    tp=st.sampled_from([1, 2, 4, 8]),
    pp=st.sampled_from([1, 2, 4, 8]),
    dp=st.sampled_from([1, 2, 4]),
    name=st.sampled_from(sorted(devices())),
    recompute=st.sampled_from(["none", "selective", "full"]),
)
def test_no_layout_beats_the_roofline(tp: int, pp: int, dp: int, name: str, recompute: str) -> None:
    """Every term is positive or nothing, and the rate never exceeds what products alone allow."""
    job = Job(LLAMA, tp, pp, dp, 4096, 4096, 16, recompute=recompute)
    cost = estimate(job, device(name))
    assert min(vars(cost).values()) >= 0
    assert 0 < cost.mfu < 0.62
    assert cost.bubble == pytest.approx(
        (pp - 1) / 16 * (cost.compute + cost.memory + cost.tensor_parallel + cost.pipeline)
    )
    assert (cost.data_parallel > 0) == (dp > 1)
    assert (cost.tensor_parallel > 0) == (tp > 1)


def test_recomputation_costs_a_third_of_the_products_more() -> None:
    plain, full = (
        estimate(Job(LLAMA, 1, 1, 8, 4096, 4096, 16, recompute=kind), device("h100"))
        for kind in ("none", "full")
    )
    assert full.compute == pytest.approx(4 / 3 * plain.compute)
    assert full.mfu < plain.mfu


def test_nine_tenths_of_what_is_hidden_between_copies_cost_nothing() -> None:
    """Gradients are four bytes of six, weights two."""
    job = Job(LLAMA, 1, 1, 8, 4096, 4096, 16)
    half = replace(job, hides_gradients=True)
    plain, gradients, both = (
        estimate(each, device("h100")).data_parallel
        for each in (job, half, replace(half, hides_weights=True))
    )
    assert gradients == pytest.approx(2.4 / 6 * plain)
    assert both == pytest.approx(0.1 * plain)


def test_logits_in_chunks_cost_their_product_once_more() -> None:
    """32,000 x 4,096 of 6.6e9 weights, forward, of three such passes: 0.6 % where attention is
    short."""
    plain, chunked = (
        estimate(Job(LLAMA, 1, 1, 8, 4096, 1, 16, is_chunked=each), device("h100"))
        for each in (False, True)
    )
    share = 32_000 * 4096 / (6_738_415_616 - 32_000 * 4096 - 4096) / 3
    assert chunked.compute == pytest.approx((1 + share) * plain.compute, rel=1e-4)
    assert chunked.memory == plain.memory


def test_the_operations_of_a_step_are_three_passes_and_those_of_adapters_nearly_two() -> None:
    """Attention has no weights: its backward pass is twice its forward pass in any case."""
    products, attention = flops_per_token(LLAMA, 4096)
    logits = 2 * LLAMA.padded_vocab_size(1) * LLAMA.hidden_size
    whole = count_flops(LLAMA, 10, 4096, has_logits=True, is_whole=True)
    scores = count_flops(LLAMA, 10, 4096, has_logits=False, is_whole=True)
    adapters = count_flops(LLAMA, 10, 4096, has_logits=True, is_whole=False)
    assert whole == pytest.approx(30 * (products + attention))
    assert scores == pytest.approx(whole - 30 * logits)
    assert adapters == pytest.approx(whole - 10 * products)


@pytest.mark.parametrize(
    ("called", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_a_gpu_is_known_by_what_its_driver_calls_it(called: str, name: str) -> None:
    assert device_called(called) == device(name)


@pytest.mark.parametrize("called", ["NVIDIA A10G", "NVIDIA H100 PCIe", "NVIDIA L4", ""])
def test_a_gpu_of_another_rate_is_not_taken_for_one_that_is_known(called: str) -> None:
    assert device_called(called) is None
