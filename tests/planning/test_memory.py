from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignctl.config.kernels import Activation
from alignctl.config.presets.load import STAGES, load_preset, resolve
from alignctl.config.sections import Parallel
from alignctl.planning.job import predict
from alignctl.planning.memory import (
    Part,
    Tokens,
    forward_activations,
    held,
    kept_by_layer,
    kept_of_shared,
    training_activations,
)
from tests.test_presets import PARAMETERS, count

PRESETS = {name: load_preset(name).model for name in PARAMETERS}
LARGE_VOCABULARY = PRESETS["llama2-7b"].model_copy(
    update={"vocab_size": 128_256, "num_layers": 1, "max_position_embeddings": 8192}
)
CHUNK = 1 << 24
"""Bytes of logits in float32 at a time."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_model_on_one_rank_has_all_its_parameters(name: str) -> None:
    """No rows fill its vocabulary up: those of Llama and Bloom are multiples of 128."""
    part = Part(PRESETS[name], Parallel(), 0, "lm", "bf16")
    assert part.parameters() == count(PRESETS[name])


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
@pytest.mark.parametrize("pp", [1, 2, 4, 8])
def test_stages_and_ranks_add_up_to_the_model(tp: int, pp: int) -> None:
    """Matrices once over all ranks, with rows filled up; norms on every tensor-parallel rank."""
    model = PRESETS["llama2-70b"]
    parts = [Part(model, Parallel(tp=tp, pp=pp), stage, "lm", "bf16") for stage in range(pp)]
    norms = (2 * model.num_layers + 1) * model.hidden_size
    filled = 2 * (model.padded_vocab_size(tp) - model.vocab_size) * model.hidden_size
    whole = count(model) + filled + (tp - 1) * norms
    assert tp * sum(part.parameters() for part in parts) == whole


def test_a_trained_weight_takes_18_bytes_in_bf16_and_16_in_fp32() -> None:
    """2 + 4 + 12, and 4 + 4 + 8; over four copies the optimizer's 12 become 3."""
    model = PRESETS["llama2-7b"]
    number = count(model)
    plain = Part(model, Parallel(), 0, "lm", "bf16")
    assert held(plain, 4, is_trained=True).total == 18 * number
    assert held(Part(model, Parallel(), 0, "lm", "fp32"), 1, is_trained=True).total == 16 * number
    spread = Part(model, Parallel(distributed_optimizer=True), 0, "lm", "bf16")
    assert held(spread, 4, is_trained=True).total == 9 * number
    assert held(plain, 1, is_trained=False).total == 2 * number


@given(
    name=st.sampled_from(["llama2-7b", "llama2-70b", "bloom-7b"]),
    tp=st.sampled_from([1, 2, 4, 8]),
    tokens=st.integers(1, 1 << 16),
)
def test_recomputation_and_cuts_never_take_more(name: str, tp: int, tokens: int) -> None:
    def kept(tp: int, recompute: str) -> int:
        parallel = Parallel(tp=tp, sequence_parallel=True, recompute=recompute)  # type: ignore[arg-type]
        return kept_by_layer(Part(PRESETS[name], parallel, 0, "lm", "bf16"), tokens)

    assert kept(tp, "selective") < kept(tp, "none")
    assert kept(tp, "none") <= kept(1, "none")


@pytest.mark.parametrize("recompute", ["none", "selective"])
@pytest.mark.parametrize("name", ["llama2-7b", "llama2-70b", "bloom-7b"])
def test_attention_in_one_kernel_keeps_what_plain_attention_does_without_copies(
    name: str, recompute: str
) -> None:
    """Its output once, and 70B's 8 key-value heads without repeating them for 64."""
    model = PRESETS[name]
    parallel = Parallel(recompute=recompute)  # type: ignore[arg-type]
    plain, flex = (Part(model, parallel, 0, "lm", "bf16", kind) for kind in ("plain", "flex"))
    repeated = 2 * model.hidden_size - model.hidden_size // 8 if name == "llama2-70b" else 0
    copies = 2 * (model.hidden_size + repeated) if recompute == "none" else 0
    assert kept_by_layer(plain, 100) - kept_by_layer(flex, 100) == 100 * copies
    shared = Tokens(4096, 2048, 4096, continued=4096)
    assert kept_of_shared(flex, shared) == 0 <= kept_of_shared(plain, shared)


def test_a_role_takes_what_its_own_layout_takes() -> None:
    """A reward model at TP 1 keeps about four times what a quarter of it does, and others the same.

    A value model in two stages makes ranks of two kinds; its state is spread over its own copies.
    """

    def models(*overrides: str) -> list[dict[str, Any]]:
        config = resolve(STAGES["rlhf"], "llama2-7b", {"output": Path("x")}, overrides)
        return [dict(rank.models) for rank in predict(config).ranks]

    (shared,), (own,) = models(), models("roles.reward.parallel.tp=1")
    assert own["reward"].weights == pytest.approx(4 * shared["reward"].weights, rel=0.01)
    assert {**own, "reward": None} == {**shared, "reward": None}
    first, last = models("roles.value.parallel.tp=2", "roles.value.parallel.pp=2")
    both = first["value"].weights + last["value"].weights
    assert both == pytest.approx(2 * shared["value"].weights, rel=0.01)
    assert first["policy"] == last["policy"] == shared["policy"]


def test_micro_batches_under_way_add_up() -> None:
    """The first of four stages has four of them, the last one."""
    part = Part(PRESETS["llama2-70b"], Parallel(tp=8, pp=4), 1, "lm", "bf16")
    tokens = Tokens(4096, 2048, 4096)
    one, four = (training_activations(part, tokens, number) for number in (1, 4))
    layers = part.layers * kept_by_layer(part, 4096)
    assert four - one == 3 * (layers + 4096 * 8192 * 2)


def test_logits_in_chunks_take_what_a_chunk_of_them_takes() -> None:
    """8,192 positions of 128,256 columns in bf16 are 2.1 GB, twice; 1,024 of them an eighth.

    Then the gradient of the rows is there meanwhile, 8,192 x 4,096 numbers, or that of the output
    layer is the most: 128,256 x 4,096.
    """
    rows, table, logits = 8192 * 4096 * 2, 128_256 * 4096 * 2, 8192 * 128_256 * 2
    tokens, found, scored = Tokens(8192, 8192, 8192), {}, {}
    for size in (None, 8192, 1024, 4096):
        part = Part(LARGE_VOCABULARY, Parallel(logits_chunk_size=size), 0, "lm", "bf16")
        found[size] = training_activations(part, tokens, 1)
        scored[size] = forward_activations(part, tokens)
    assert found[8192] == found[None]
    assert found[None] - found[1024] == 2 * logits + 2 * CHUNK - (logits // 8 + rows + table)
    assert found[None] - found[4096] == logits - rows
    assert scored[None] - scored[4096] == logits // 2


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_fits_its_gpus_by_arithmetic(name: str, stage: str) -> None:
    report = predict(resolve(STAGES[stage], name, {"output": Path("runs")}))
    assert report.fits, report.verdict


@pytest.mark.parametrize(("name", "spared"), [("llama2-7b", 2), ("bloom-7b", 0)])
def test_a_fused_gate_keeps_its_input_and_its_product_alone(name: str, spared: int) -> None:
    """Not the gate activated, nor its other factor: an inner width of each token for each."""
    model = PRESETS[name]
    plain, fused = (
        Part(model, Parallel(tp=2), 0, "lm", "bf16", "flex", activation)
        for activation in get_args(Activation)
    )
    difference = kept_by_layer(plain, 100) - kept_by_layer(fused, 100)
    assert difference == 2 * 100 * spared * model.ffn_hidden_size // 2
