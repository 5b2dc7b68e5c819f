from copy import deepcopy
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from alignctl.config.sections import Model
from alignctl.errors import UserError
from alignctl.models.families import FAMILIES, differences, model_from_hf, weight_map
from alignctl.models.rotary import scale_frequencies
from alignctl.models.weight_map import hf_shapes

LLAMA: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 48,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 88,
    "vocab_size": 509,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
}
SCALED: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
BLOOM: dict[str, Any] = {"n_layer": 3, "hidden_size": 48, "n_head": 6, "vocab_size": 509}


def configs() -> dict[str, Any]:
    return {
        "llama": LlamaConfig(**LLAMA, rope_parameters={"rope_type": "default", "rope_theta": 3e5}),
        "tied llama": LlamaConfig(**LLAMA, tie_word_embeddings=True),
        "bloom": BloomConfig(**BLOOM, layer_norm_epsilon=1e-6),
        "untied bloom": BloomConfig(**BLOOM, tie_word_embeddings=False),
        "plain llama 3": LlamaConfig(**LLAMA, rope_parameters={"rope_theta": 5e5}),
        "scaled llama 3": LlamaConfig(**LLAMA, rope_parameters=SCALED, tie_word_embeddings=True),
        "mistral": MistralConfig(**LLAMA, head_dim=12, sliding_window=None),
        "mistral of usual heads": MistralConfig(**LLAMA, sliding_window=None),
        "qwen 2": Qwen2Config(**LLAMA),
        "tied qwen 2": Qwen2Config(**LLAMA, tie_word_embeddings=True),
        "qwen 3": Qwen3Config(**LLAMA, head_dim=12),
        "tied qwen 3": Qwen3Config(**LLAMA, head_dim=8, tie_word_embeddings=True),
    }


@pytest.mark.parametrize("name", configs())
def test_an_architecture_survives_the_way_through_transformers(name: str) -> None:
    config = configs()[name]
    model = model_from_hf(config.to_dict(), where="config.json", vocab_divisor=2)
    written = FAMILIES[model.family].to_hf(model)
    reread = type(config)(**{key: v for key, v in written.items() if key != "model_type"})
    assert model_from_hf(reread.to_dict(), where="config.json", vocab_divisor=2) == model
    assert model_from_hf(written, where="config.json", vocab_divisor=2) == model


@pytest.mark.parametrize("name", configs())
def test_the_weight_map_names_what_transformers_has(name: str) -> None:
    """Every tensor of the transformers model, no other, and each of its shape."""
    config = configs()[name]
    model = model_from_hf(config.to_dict(), where="config.json")
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(config)
    theirs.tie_weights()
    shapes = {name: tuple(p.shape) for name, p in theirs.named_parameters()}
    assert hf_shapes(weight_map(model), model) == shapes


def test_llama_keeps_what_its_config_says() -> None:
    config = configs()["llama"].to_dict()
    assert model_from_hf(config, where="config.json") == Model(
        family="llama2",
        num_layers=3,
        hidden_size=48,
        num_attention_heads=6,
        num_query_groups=2,
        ffn_hidden_size=88,
        vocab_size=509,
        max_position_embeddings=128,
        norm_epsilon=1e-6,
        rotary_base=3e5,
        tie_embeddings=False,
        vocab_divisor=128,
    )


def test_llama_configs_of_the_years_before_are_understood() -> None:
    """Llama 2 was published with neither rope_theta nor head_dim, the 7B without groups."""
    old = {key: v for key, v in LLAMA.items() if key != "num_key_value_heads"}
    model = model_from_hf(old | {"model_type": "llama", "rope_scaling": None}, where="c")
    assert model.rotary_base == 10000.0
    assert model.num_query_groups == 6
    newer = model_from_hf(old | {"model_type": "llama", "rope_theta": 1e6}, where="c")
    assert newer.rotary_base == 1e6


def test_bloom_configs_of_bigscience_are_understood() -> None:
    """bloom-560m's own keys: n_embed for the width, and no num_hidden_layers."""
    published = {
        "model_type": "bloom",
        "apply_residual_connection_post_layernorm": False,
        "n_embed": 1024,
        "n_layer": 24,
        "num_attention_heads": 16,
        "layer_norm_epsilon": 1e-05,
        "seq_length": 2048,
        "vocab_size": 250880,
    }
    model = model_from_hf(published, where="config.json")
    assert (model.hidden_size, model.num_layers, model.num_attention_heads) == (1024, 24, 16)
    assert (model.ffn_hidden_size, model.tie_embeddings) == (4096, True)


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_parameters"),
        # An empty one beside it changes nothing, one that says more takes its place.
        ({"rope_parameters": {"rope_type": "linear", "factor": 2}, "rope_scaling": {}}, "'linear'"),
        ({"rope_parameters": {}, "rope_scaling": {"type": "dynamic", "factor": 2}}, "'dynamic'"),
        (
            {
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
                "rope_scaling": {"type": "linear", "factor": 2.0},
            },
            "rope_scaling = {'type': 'linear'",
        ),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"head_dim": 16}, "head_dim = 16"),
    ],
)
def test_what_llama_2_does_not_have_is_refused_by_name(
    change: dict[str, Any], culprit: str
) -> None:
    with pytest.raises(UserError, match=r"not part of the Llama 2 family") as error:
        model_from_hf({"model_type": "llama", **LLAMA, **change}, where="m/config.json")
    assert error.value.message.startswith("m/config.json: ")
    assert culprit in error.value.message


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"rope_theta": 1e6},
        {"rope_parameters": {"rope_theta": 5e5}},
        {"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 1e6},
        {"rope_parameters": {"rope_type": "default"}, "rope_theta": 1e6},
        {"rope_scaling": {"rope_type": "default", "rope_theta": 3e5}, "rope_theta": 1e6},
        {"rope_scaling": {"type": "default"}, "rope_parameters": {}, "rope_theta": 2e4},
        {"rope_scaling": {"rope_type": "default", "type": "linear"}},
    ],
)
def test_the_base_of_rotary_positions_is_the_one_that_transformers_takes(
    change: dict[str, Any],
) -> None:
    theirs = LlamaConfig(**LLAMA, **deepcopy(change)).rope_parameters
    assert isinstance(theirs, dict)
    assert theirs["rope_type"] == "default"
    ours = model_from_hf({"model_type": "llama", **LLAMA, **change}, where="c").rotary_base
    assert ours == theirs["rope_theta"]


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("llama", {"rope_scaling": "linear"}, "rope_scaling = 'linear' is no mapping"),
        ("llama", {"rope_parameters": [1]}, r"rope_parameters = \[1\] is no mapping"),
        (
            "llama",
            {"rope_scaling": {"type": "default"}, "rope_parameters": {"rope_theta": 5e5}},
            "rope_scaling and rope_parameters contradict each other: rope_theta 10000.0 and 50",
        ),
        ("llama", {"rope_theta": 0}, "rope_theta = 0 is no base"),
        ("llama", {"rope_theta": None}, "rope_theta = None is no base"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "only a part of each head"),
        ("llama", {"num_key_value_heads": 0}, "num_key_value_heads = 0 does not divide num_att"),
        ("llama", {"num_key_value_heads": 4}, "num_key_value_heads = 4 does not divide num_att"),
        ("llama", {"num_attention_heads": 16, "num_key_value_heads": 1}, "heads of 3 cannot be"),
        ("llama", {"hidden_size": 50}, "num_attention_heads = 6 does not divide hidden_size = 50"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config = {'qua"),
        ("llama", {"sliding_window": 4096}, "sliding_window = 4096 is not supported"),
        ("llama", {"layer_types": ["sliding_attention"] * 3}, "layer_types = "),
        ("llama", {"per_layer_config": {"0": {"intermediate_size": 8}}}, "per_layer_config = "),
        ("llama", {"transformers_weights": "a.safetensors"}, "transformers_weights = "),
        ("llama", {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}}, "auto_map = "),
        ("llama", {"is_causal": False}, "is_causal = False is not supported"),
        ("llama", {"is_causal": None}, "is_causal = None is not supported"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported"),
        ("llama", {"tie_word_embeddings": None}, "tie_word_embeddings = None is neither"),
        ("llama", {"pad_token_id": 509}, "pad_token_id = 509 is beyond the 509 rows of vocab_size"),
        ("bloom", {"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes' is neither"),
        ("bloom", {"n_embed": 64}, "hidden_size = 48 and n_embed = 64 contradict each other"),
        ("bloom", {"num_hidden_layers": 2}, "n_layer = 3 and num_hidden_layers = 2 contradict"),
        ("bloom", {"num_attention_heads": 3}, "n_head = 6 and num_attention_heads = 3 contradict"),
        ("bloom", {"n_inner": 100}, "n_inner = 100 is not four times hidden_size = 48"),
        ("bloom", {"slow_but_exact": True, "pretraining_tp": 4}, "with pretraining_tp = 4 is not"),
        ("bloom", {"quantization_config": {}}, "quantization_config = {} is not supported"),
    ],
)
def test_whatever_else_changes_what_transformers_computes_is_refused_by_name(
    family: str, change: dict[str, Any], words: str
) -> None:
    shape = {"llama": LLAMA, "bloom": BLOOM | {"layer_norm_epsilon": 1e-5}}[family]
    with pytest.raises(UserError, match=words):
        model_from_hf({"model_type": family, **shape, **change}, where="c")


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("llama", {"pretraining_tp": 2, "hidden_act": "swish", "sliding_window": None}),
        ("llama", {"auto_map": {"AutoTokenizer": ["tokenization.Own", None]}, "head_dim": 8}),
        ("bloom", {"slow_but_exact": True, "pretraining_tp": 1, "n_inner": None}),
        ("bloom", {"num_hidden_layers": 3, "n_embed": 48, "bias_dropout_fusion": True}),
    ],
)
def test_what_changes_nothing_is_taken(family: str, change: dict[str, Any]) -> None:
    shape = {"llama": LLAMA, "bloom": BLOOM | {"layer_norm_epsilon": 1e-5}}[family]
    plain = model_from_hf({"model_type": family, **shape}, where="c")
    assert model_from_hf({"model_type": family, **shape, **change}, where="c") == plain


def test_a_bloom_with_another_residual_is_refused() -> None:
    config = {"model_type": "bloom", **BLOOM, "apply_residual_connection_post_layernorm": True}
    with pytest.raises(UserError, match="apply_residual_connection_post_layernorm"):
        model_from_hf(config, where="config.json")


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"model_type": "llama", **LLAMA, "intermediate_size": None}, "ffn_hidden_size"),
        ({"model_type": "llama"}, "num_attention_heads"),
        ({"model_type": "bloom"}, "hidden_size"),
        (
            {"model_type": "llama", **LLAMA, "num_attention_heads": 7},
            "num_attention_heads = 7",
        ),
        ({"model_type": "llama", **LLAMA, "vocab_size": "many"}, "vocab_size"),
        ({"model_type": "llama", **LLAMA, "hidden_size": "48"}, "'str' and 'int'"),
        ({"model_type": "llama", **LLAMA, "num_attention_heads": 0}, "by zero"),
    ],
)
def test_a_config_that_is_incomplete_or_impossible_says_which_key(
    config: dict[str, Any], key: str
) -> None:
    with pytest.raises(UserError, match=r"^models/config.json: ") as error:
        model_from_hf(config, where="models/config.json")
    assert key in error.value.message


def test_another_model_type_is_refused_with_those_that_work() -> None:
    with pytest.raises(UserError, match="model_type = 'gpt2'") as error:
        model_from_hf({"model_type": "gpt2"}, where="config.json")
    assert error.value.hint == "supported model types: llama, bloom, mistral, qwen2, qwen3"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "qwen3_moe", "num_experts": 128}, "it is a mixture of experts"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "it is a mixture of experts"),
        ({"model_type": "deepseek_v3", "n_routed_experts": 256}, "it is a mixture of experts"),
        ({"model_type": "qwen2_5_vl", "vision_config": {"depth": 32}}, "more than text"),
        ({"model_type": "mistral3", "text_config": {}, "vision_config": {"a": 1}}, "than text"),
        ({"model_type": "own", "auto_map": {"AutoModel": "a.B"}}, "code of its own, which is not"),
        ({"model_type": "llama", **LLAMA, "num_local_experts": 8}, "num_local_experts = 8 is not"),
        ({"model_type": "qwen3", **LLAMA, "num_experts": 8}, "num_experts = 8 is not supported"),
        ({"model_type": "mistral", **LLAMA, "sliding_window": 4096}, "sliding_window = 4096 is n"),
        ({"model_type": "mistral", **LLAMA}, "sliding_window is missing, and transformers then t"),
        (
            {"model_type": "qwen2", **LLAMA, "sliding_window": 64, "use_sliding_window": True},
            "use_sliding_window = True is not supported",
        ),
        ({"model_type": "qwen2", **LLAMA, "layer_types": ["sliding_attention"]}, "layer_types = "),
        (
            {"model_type": "qwen3", **LLAMA, "head_dim": 8, "use_sliding_window": True},
            "use_sliding_window = True is not supported",
        ),
        ({"model_type": "qwen3", **LLAMA}, "head_dim is missing, and transformers then takes 128"),
        ({"model_type": "qwen3", **LLAMA, "head_dim": 7}, "heads of 7 cannot be turned"),
        (
            {"model_type": "qwen3", **LLAMA, "head_dim": 8, "attention_bias": True},
            "attention_bias = True is not part of the Qwen 3 family",
        ),
        ({"model_type": "qwen2", **LLAMA, "head_dim": 16}, "head_dim = 16 is not part of the Qwen"),
        (
            {"model_type": "qwen2", **LLAMA, "rope_scaling": {"type": "yarn", "factor": 4.0}},
            "rope_scaling = {'type': 'yarn', 'factor': 4.0} is not part of the Qwen 2 family",
        ),
        (
            {"model_type": "llama", **LLAMA, "rope_scaling": {"rope_type": "llama3"}},
            "key 'factor' is missing",
        ),
        (
            {"model_type": "llama", **LLAMA, "rope_scaling": SCALED | {"factor": 1.0}},
            "factor: Input should be greater than 1",
        ),
        (
            {"model_type": "llama", **LLAMA, "rope_scaling": SCALED | {"low_freq_factor": 4}},
            r"low_freq_factor 4.0 is not less than high_freq_factor 4.0",
        ),
        (
            {"model_type": "llama", **LLAMA, "rope_scaling": SCALED | {"factor": "many"}},
            "a value in it is of the wrong kind",
        ),
        (
            {
                "model_type": "llama",
                **LLAMA,
                "rope_scaling": SCALED,
                "rope_parameters": SCALED | {"factor": 8.0},
            },
            "rope_scaling and rope_parameters contradict each other",
        ),
        (
            {"model_type": "qwen2", **LLAMA, "dual_chunk_attention_config": {"chunk_size": 8}},
            "dual_chunk_attention_config = ",
        ),
    ],
)
def test_what_is_near_to_a_family_but_different_is_refused_by_name(
    config: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        model_from_hf(config, where="c")


def test_a_window_that_is_off_is_none() -> None:
    """As Qwen publishes its configs: the size of a window that nothing looks through."""
    window = {"sliding_window": 131072, "use_sliding_window": False, "max_window_layers": 28}
    for kind in ({"model_type": "qwen2"}, {"model_type": "qwen3", "head_dim": 8}):
        plain = model_from_hf({**kind, **LLAMA}, where="c")
        assert model_from_hf({**kind, **LLAMA, **window}, where="c") == plain


@pytest.mark.parametrize("head_dim", [8, 64, 128])
@pytest.mark.parametrize(
    "scaling",
    [
        {},
        {"factor": 8.0, "original_max_position_embeddings": 8192},
        {"factor": 32.0, "original_max_position_embeddings": 8192},
        {"factor": 2.5, "low_freq_factor": 0.5, "high_freq_factor": 7.0},
    ],
)
def test_scaled_frequencies_have_the_bits_of_transformers(
    scaling: dict[str, float], head_dim: int
) -> None:
    told = SCALED | scaling
    config = LlamaConfig(**LLAMA | {"hidden_size": 6 * head_dim}, rope_parameters=told)
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config)
    model = model_from_hf(config.to_dict(), where="c")
    assert model.rope_scaling is not None
    plain = 1.0 / 5e5 ** (torch.arange(0, head_dim, 2).float() / head_dim)
    assert torch.equal(scale_frequencies(plain, model.rope_scaling), theirs)
    assert not torch.equal(plain, theirs)


def test_models_of_one_class_in_transformers_are_not_different() -> None:
    """A run of before Llama 3 was a family has llama2 in its configuration."""
    ours = model_from_hf({"model_type": "llama", **LLAMA, "rope_theta": 5e5}, where="c")
    assert ours.family == "llama3"
    old = ours.model_copy(update={"family": "llama2"})
    assert differences(old, ours) == []
    other = ours.model_copy(update={"family": "mistral"})
    assert differences(ours, other) == ["family: llama3 != mistral"]


def test_differences_name_the_keys_and_both_values() -> None:
    ours = model_from_hf({"model_type": "llama", **LLAMA}, where="c")
    theirs = ours.model_copy(update={"num_layers": 4, "tie_embeddings": True})
    assert differences(ours, ours) == []
    assert differences(ours, theirs) == ["num_layers: 3 != 4", "tie_embeddings: False != True"]


def test_differences_leave_out_what_changes_no_weight() -> None:
    ours = model_from_hf({"model_type": "llama", **LLAMA}, where="c")
    theirs = ours.model_copy(update={"vocab_divisor": 2, "hidden_dropout": 0.1})
    assert differences(ours, theirs) == []
