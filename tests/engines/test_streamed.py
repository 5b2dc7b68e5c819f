import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor
from torch.nn.functional import linear
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from alignctl.checkpoints.tensors.lazy import LazyTensor
from alignctl.config.sections import Head, Model
from alignctl.engines.streamed.comparison import TOLERANCE, Comparison, Layers, compare
from alignctl.engines.streamed.forward import MAX_ROWS, Probe, Scratch
from alignctl.engines.streamed.hf import TransformersForward
from alignctl.engines.streamed.megatron import MegatronForward, single_rank
from alignctl.errors import RunError
from alignctl.models.families import FAMILIES, weight_map
from alignctl.models.weight_map import hf_shapes

Tensors = dict[str, Tensor]

NUM_LAYERS = 5
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-gqa": {"num_query_groups": 2},
    "llama-tied": {"tie_embeddings": True},
    "llama-many-rows": {"vocab_size": MAX_ROWS + 907},
    "bloom": {
        "family": "bloom",
        "ffn_hidden_size": 192,
        "rotary_base": None,
        "tie_embeddings": True,
    },
    "llama3": {
        "family": "llama3",
        "num_query_groups": 2,
        "rotary_base": 500.0,
        "rope_scaling": {
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "mistral": {"family": "mistral", "num_query_groups": 2, "head_dim": 16},
    "qwen2": {"family": "qwen2", "num_query_groups": 2, "tie_embeddings": True},
    "qwen3": {"family": "qwen3", "num_query_groups": 3, "head_dim": 12},
}
HEADS: tuple[Head, ...] = ("lm", "linear", "pooler")
BOTH = [(name, head) for name in ("llama-gqa", "bloom") for head in HEADS]
EVERY = [*BOTH, *((name, "lm") for name in MODELS if name not in ("llama-gqa", "bloom"))]


def architecture(name: str) -> Model:
    """Six heads: not a power of two, for which ALiBi has a rule of its own."""
    usual = {
        "family": "llama2",
        "num_layers": NUM_LAYERS,
        "hidden_size": 48,
        "num_attention_heads": 6,
        "num_query_groups": 6,
        "ffn_hidden_size": 88,
        "vocab_size": 301,
        "max_position_embeddings": 64,
        "rotary_base": 5e5,
        "tie_embeddings": False,
    }
    return Model.model_validate(usual | MODELS[name])


def hf_weights(model: Model, head: Head) -> Tensors:
    """Every tensor of transformers; norms and biases are random too, so that each matters."""
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for name, shape in hf_shapes(weight_map(model, head), model).items():
        weights[name] = 0.2 * torch.randn(shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            weights[name] += 1
    return weights


def merged(weights: Tensors, model: Model, head: Head) -> Tensors:
    """The same as full Megatron tensors."""
    rows = weight_map(model, head)
    return {
        name: row.layout.merge([weights[part] for part in row.hf], model)
        for name, row in rows.items()
    }


def lazy(
    tensors: Mapping[str, Tensor], make: Callable[[Tensor], Tensor] = lambda value: value
) -> dict[str, LazyTensor]:
    return {name: LazyTensor.holding(value, name).compute(make) for name, value in tensors.items()}


def whole_model(factory: Any, model: Model, weights: Tensors) -> Any:
    """The model as transformers itself builds and runs it, by one of its factories."""
    content = FAMILIES[model.family].to_hf(model) | {"num_labels": 1, "pad_token_id": None}
    built = factory.from_config(AutoConfig.for_model(**content)).eval()
    missing, unexpected = built.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if model.tie_embeddings else set())
    return built


def expected(model: Model, head: Head, weights: Tensors, probe: Probe) -> Tensor:
    """Logits of the probe's rows, or scores of its tokens, by the whole model at once."""
    tokens = probe.token_ids[None]
    if head == "lm":
        whole = whole_model(AutoModelForCausalLM, model, weights)
        logits: Tensor = whole(tokens).logits[0]
        return logits[:, probe.rows]
    body = {name: value for name, value in weights.items() if not name.startswith("pooler")}
    score = {} if head == "linear" else {"score.weight": torch.zeros(1, model.hidden_size)}
    whole = whole_model(AutoModelForSequenceClassification, model, body | score)
    hidden: Tensor = whole.base_model(tokens).last_hidden_state[0]
    if head == "linear":
        scores = linear(hidden, weights["score.weight"])
        # The classifier scores the last token only.
        torch.testing.assert_close(whole(tokens).logits[0], scores[-1])
        return scores
    first, second = (
        (weights[f"pooler_head.dense{n}.weight"], weights[f"pooler_head.dense{n}.bias"])
        for n in (1, 2)
    )
    return linear(linear(hidden, *first).relu(), *second)


def check(
    source: Tensors,
    written: Tensors,
    model: Model,
    head: Head = "lm",
    *,
    layers: Layers = "all",
    on_layer: Callable[[int], None] = lambda _: None,
) -> Comparison:
    return compare(lazy(source), lazy(written), model, head, layers=layers, on_layer=on_layer)


@pytest.mark.parametrize(("name", "head"), EVERY)
def test_layer_by_layer_is_the_whole_model(name: str, head: Head) -> None:
    """Both against transformers' own forward pass; 1e-5 of the largest value is rounding."""
    model = architecture(name)
    weights, probe = hf_weights(model, head), Probe.of(model)
    tensors = lazy(merged(weights, model, head))
    with single_rank(), torch.no_grad():
        right = expected(model, head, weights, probe)
        for kind in (TransformersForward, MegatronForward):
            forward = kind(tensors, model, head, probe, Scratch())
            hidden = forward.embed()
            for number in range(model.num_layers):
                hidden = forward.layer(number, hidden)
            found = forward.output(hidden)
            assert found.shape == (32, 1 if head != "lm" else min(model.vocab_size, MAX_ROWS))
            assert (found - right).abs().max() <= 1e-5 * right.abs().max()


@pytest.mark.parametrize(("name", "head"), EVERY)
@pytest.mark.parametrize("layers", ["all", "spot"])
def test_a_right_conversion_is_the_same(name: str, head: Head, layers: Layers) -> None:
    model = architecture(name)
    tensors = merged(hf_weights(model, head), model, head)
    ran: list[int] = []
    found = check(tensors, tensors, model, head, layers=layers, on_layer=ran.append)
    assert found.is_same
    assert ran == ([0, 1, 2, 3, 4] if layers == "all" else [0, 2, 4])
    assert found.num_layers == len(ran)
    assert found.describe().startswith(found.output.place)
    assert "\n" not in found.describe()


# ---- what a wrong conversion does ----


def exchange_layers(tensors: Tensors, model: Model) -> None:
    for name in [name for name in tensors if "layers.2." in name]:
        other = name.replace("layers.2.", "layers.3.")
        tensors[name], tensors[other] = tensors[other], tensors[name]


def change_qkv(tensors: Tensors, model: Model, change: Callable[[list[Tensor]], Tensor]) -> None:
    row = weight_map(model)["decoder.layers.2.self_attention.linear_qkv.weight"]
    tensors[row.megatron] = change(row.layout.split(tensors[row.megatron], model))


def exchange_query_and_key(tensors: Tensors, model: Model) -> None:
    row = weight_map(model)["decoder.layers.2.self_attention.linear_qkv.weight"]
    change_qkv(tensors, model, lambda qkv: row.layout.merge([qkv[1], qkv[0], qkv[2]], model))


def drop_the_interleave(tensors: Tensors, model: Model) -> None:
    change_qkv(tensors, model, torch.cat)


def shift_a_head(tensors: Tensors, model: Model) -> None:
    name = "decoder.layers.2.self_attention.linear_qkv.weight"
    tensors[name] = tensors[name].roll(3 * model.head_width, dims=0)


def transpose_a_projection(tensors: Tensors, model: Model) -> None:
    name = "decoder.layers.2.self_attention.linear_proj.weight"
    tensors[name] = tensors[name].T.contiguous()


def exchange_gate_and_up(tensors: Tensors, model: Model) -> None:
    name = "decoder.layers.2.mlp.linear_fc1.weight"
    tensors[name] = tensors[name].roll(model.ffn_hidden_size, dims=0)


def shift_the_output_layer(tensors: Tensors, model: Model) -> None:
    tensors["output_layer.weight"] = tensors["output_layer.weight"].roll(1, dims=0)


def shift_the_embedding(tensors: Tensors, model: Model) -> None:
    name = "embedding.word_embeddings.weight"
    tensors[name] = tensors[name].roll(1, dims=0)


FAULTS: list[tuple[Callable[[Tensors, Model], None], str, str]] = [
    (exchange_layers, "llama", "layer 2"),
    (exchange_layers, "bloom", "layer 2"),
    (exchange_query_and_key, "llama", "layer 2"),
    (drop_the_interleave, "llama", "layer 2"),
    (drop_the_interleave, "llama-gqa", "layer 2"),
    (shift_a_head, "llama", "layer 2"),
    (shift_a_head, "bloom", "layer 2"),
    (transpose_a_projection, "llama-gqa", "layer 2"),
    (transpose_a_projection, "bloom", "layer 2"),
    (exchange_gate_and_up, "llama", "layer 2"),
    (shift_the_output_layer, "llama", "logits"),
    (shift_the_embedding, "llama-tied", "embedding"),
    (shift_the_embedding, "bloom", "embedding"),
]


@pytest.mark.parametrize(("fault", "name", "place"), FAULTS)
@pytest.mark.parametrize("layers", ["all", "spot"])
def test_a_wrong_conversion_is_found_where_it_is(
    fault: Callable[[Tensors, Model], None], name: str, place: str, layers: Layers
) -> None:
    """Layer 2 of 5 is the middle one, which the spot check runs; a fault makes 100 times more
    than the tolerance, and what comes before it is equal."""
    model = architecture(name)
    right = merged(hf_weights(model, "lm"), model, "lm")
    wrong = dict(right)
    fault(wrong, model)
    found = check(right, wrong, model, layers=layers)
    assert not found.is_same
    first = found.output if found.hidden.is_rounding else found.hidden
    assert first.place == place
    assert first.relative > 100 * TOLERANCE
    assert f"the first difference is at {place} (" in found.describe()


@pytest.mark.parametrize(("name", "head"), [case for case in BOTH if case[1] != "lm"])
def test_a_wrong_head_is_found(name: str, head: Head) -> None:
    model = architecture(name)
    right = merged(hf_weights(model, head), model, head)
    changed = {name: -value for name, value in right.items() if "score" in name or "pooler" in name}
    found = check(right, right | changed, model, head)
    assert not found.is_same
    assert found.hidden.is_rounding
    assert found.output.place == "scores"


def test_a_layer_that_no_spot_touches_is_not_run() -> None:
    model = architecture("llama")
    right = merged(hf_weights(model, "lm"), model, "lm")
    changed = {name: -value for name, value in right.items() if "layers.1." in name}
    assert check(right, right | changed, model, layers="spot").is_same
    assert check(right, right | changed, model, layers="all").hidden.place == "layer 1"


def test_rounding_that_was_asked_for_is_no_difference() -> None:
    """bfloat16 keeps 8 bits, so unrounded weights differ by up to 2^-9 of themselves: 20 times
    the tolerance. Rounded on both sides they are equal; kept on one side they are not."""
    model = architecture("llama-gqa")
    exact = merged(hf_weights(model, "lm"), model, "lm")
    brief = {name: value.bfloat16() for name, value in exact.items()}
    assert check(exact, brief, model).is_same
    assert check(brief, brief, model).is_same
    assert check(brief, {name: value.float() for name, value in brief.items()}, model).is_same
    assert not check(exact, {name: value.float() for name, value in brief.items()}, model).is_same


def test_a_weight_that_is_not_a_number_is_a_difference() -> None:
    """Even where both sides have it: nothing can be said of what comes out."""
    model = architecture("llama")
    tensors = merged(hf_weights(model, "lm"), model, "lm")
    name = "decoder.layers.3.mlp.linear_fc2.weight"
    tensors[name] = tensors[name].clone()
    tensors[name][0, 0] = float("nan")
    found = check(tensors, tensors, model)
    assert not found.is_same
    assert found.hidden.place == "layer 3"
    assert "layer 3 (inf)" in found.describe()


def test_a_tensor_of_another_shape_is_named() -> None:
    """torch would spread a norm of one element over all of them."""
    model = architecture("llama")
    tensors = merged(hf_weights(model, "lm"), model, "lm")
    name = "decoder.layers.1.input_layernorm.weight"
    with pytest.raises(RunError) as caught:
        check(tensors, tensors | {name: torch.ones(1)}, model)
    assert caught.value.message == f"{name}: has the shape [1], the model needs [48]"


# ---- what is left behind, and what is held ----


@pytest.fixture
def group() -> Iterator[None]:
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_it_runs_again_and_leaves_nothing_behind() -> None:
    model = architecture("bloom")
    tensors = merged(hf_weights(model, "lm"), model, "lm")
    first, second = check(tensors, tensors, model), check(tensors, tensors, model)
    assert first == second
    assert not dist.is_initialized()
    assert not parallel_state.is_initialized()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("is_laid_out", [False, True])
def test_it_leaves_the_groups_of_others_alone(is_laid_out: bool) -> None:
    model = architecture("llama")
    tensors = merged(hf_weights(model, "lm"), model, "lm")
    if is_laid_out:
        parallel_state.initialize_model_parallel()
    assert check(tensors, tensors, model).is_same
    assert dist.is_initialized()
    assert parallel_state.is_initialized() == is_laid_out
    if is_laid_out:
        parallel_state.destroy_model_parallel()


@pytest.mark.parametrize(("name", "head"), BOTH)
def test_one_matrix_is_held_at_a_time(name: str, head: Head) -> None:
    """When the next one is made, all that were made before are gone; float32 is never copied."""
    model = architecture(name)
    tensors = merged(hf_weights(model, head), model, head)
    made: list[weakref.ref[Any]] = []
    held: list[int] = []

    def make(value: Tensor) -> Tensor:
        held.append(sum(each() is not None for each in made))
        array = value.numpy().copy()
        if array.ndim == 2:
            made.append(weakref.ref(array))  # dies with the last tensor that shares its memory
        return torch.from_numpy(array)

    counted = lazy(tensors, make)
    found = compare(counted, counted, model, head, layers="all", on_layer=lambda _: None)
    assert found.is_same
    assert len(held) >= 2 * len(tensors)
    # Norms and biases are made while the matrix of their module is there.
    assert max(held) <= 1
