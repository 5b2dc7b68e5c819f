"""Llama 2: RMSNorm, SwiGLU, rotary positions, no biases; multi-head or grouped-query attention."""

from collections.abc import Mapping
from typing import Any

from alignctl.config.sections import Model
from alignctl.errors import UserError
from alignctl.models.hf_config import shown
from alignctl.models.weight_map import (
    GATED_COLUMN,
    GROUPED_QKV,
    REPLICATED,
    ROW,
    VOCABULARY,
    Weight,
)

HF_MODEL_TYPE = "llama"
HF_PREFIX = "model."
HF_IGNORED = (".rotary_emb.inv_freq",)
"""Suffixes of buffers that old checkpoints carry and that are recomputed."""

_LAYER = "decoder.layers.{layer}."
_HF_LAYER = "model.layers.{layer}."
_QKV = tuple(f"{_HF_LAYER}self_attn.{part}_proj.weight" for part in "qkv")
_GATE_UP = tuple(f"{_HF_LAYER}mlp.{part}_proj.weight" for part in ("gate", "up"))

WEIGHTS = (
    Weight(
        "embedding.word_embeddings.weight",
        ("model.embed_tokens.weight",),
        VOCABULARY,
        "embedding",
    ),
    Weight(
        _LAYER + "input_layernorm.weight",
        (_HF_LAYER + "input_layernorm.weight",),
        REPLICATED,
        "layer",
    ),
    Weight(_LAYER + "self_attention.linear_qkv.weight", _QKV, GROUPED_QKV, "layer"),
    Weight(
        _LAYER + "self_attention.linear_proj.weight",
        (_HF_LAYER + "self_attn.o_proj.weight",),
        ROW,
        "layer",
    ),
    Weight(
        _LAYER + "pre_mlp_layernorm.weight",
        (_HF_LAYER + "post_attention_layernorm.weight",),
        REPLICATED,
        "layer",
    ),
    Weight(_LAYER + "mlp.linear_fc1.weight", _GATE_UP, GATED_COLUMN, "layer"),
    Weight(
        _LAYER + "mlp.linear_fc2.weight",
        (_HF_LAYER + "mlp.down_proj.weight",),
        ROW,
        "layer",
    ),
    Weight("decoder.final_layernorm.weight", ("model.norm.weight",), REPLICATED, "head"),
)
HEAD = Weight("output_layer.weight", ("lm_head.weight",), VOCABULARY, "head")


def from_hf(config: Mapping[str, Any], *, where: str, vocab_divisor: int) -> Model:
    """Read a transformers `LlamaConfig`.

    Raises:
        UserError: The config asks for something that Llama 2 does not have (scaled rotary
            positions, biases, another activation, a head size that is not hidden / heads).
    """
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    unsupported = {
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
        "hidden_act": config.get("hidden_act", "silu") not in ("silu", "swish"),
        "head_dim": config.get("head_dim") not in (None, hidden / heads),
    }
    if found := [key for key, is_unsupported in unsupported.items() if is_unsupported]:
        values = ", ".join(f"{key} = {config.get(key)!r}" for key in found)
        raise UserError(
            f"{where}: {values} is not part of the Llama 2 family",
            "alignctl trains Llama 2 models: plain rotary positions, SwiGLU, no biases",
        )
    groups = config.get("num_key_value_heads")
    for key, parts, name, whole in (
        ("num_key_value_heads", heads if groups is None else groups, "num_attention_heads", heads),
        ("num_attention_heads", heads, "hidden_size", hidden),
    ):
        if parts < 1 or whole % parts:
            raise UserError(f"{where}: {key} = {parts} does not divide {name} = {whole}")
    if hidden // heads % 2:
        raise UserError(f"{where}: heads of {hidden // heads} cannot be turned: an odd size")
    return Model(
        family="llama2",
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        num_attention_heads=heads,
        num_query_groups=heads if groups is None else groups,
        ffn_hidden_size=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        max_position_embeddings=config["max_position_embeddings"],
        norm_epsilon=config["rms_norm_eps"],
        rotary_base=_rotary_base(config, where),
        tie_embeddings=config.get("tie_word_embeddings", False),
        vocab_divisor=vocab_divisor,
    )


def _rotary_base(config: Mapping[str, Any], where: str) -> float:
    """Return the base of the rotary positions, from whichever keys transformers takes it.

    What is not empty under `rope_scaling` takes the place of all of `rope_parameters`; where the
    base is not in there, it is the config's own `rope_theta` (`convert_rope_params_to_dict`).

    Raises:
        UserError: Positions are scaled, or two keys contradict each other.
    """
    meant = {}
    for key in ("rope_scaling", "rope_parameters"):
        told = config.get(key)
        if told is not None and not isinstance(told, Mapping):
            raise UserError(
                f"{where}: {key} = {shown(told)} is no mapping",
                "write null where positions are not scaled",
            )
        if not told:
            continue
        kind = told.get("rope_type", told.get("type", "default"))
        if kind != "default" or any(isinstance(value, Mapping) for value in told.values()):
            raise UserError(
                f"{where}: {key} = {shown(told)} is not part of the Llama 2 family",
                "alignctl trains models with plain rotary positions",
            )
        if told.get("partial_rotary_factor", 1) != 1:
            raise UserError(f"{where}: {key} = {shown(told)} turns only a part of each head")
        meant[key] = told.get("rope_theta", config.get("rope_theta", 10000.0))
    bases: list[Any] = list(meant.values()) or [config.get("rope_theta", 10000.0)]
    for base in bases:
        if isinstance(base, bool) or not isinstance(base, int | float) or base <= 0:
            raise UserError(f"{where}: rope_theta = {shown(base)} is no base of rotary positions")
    if len(set(bases)) > 1:
        raise UserError(
            f"{where}: rope_scaling and rope_parameters contradict each other: rope_theta "
            + " and ".join(map(str, bases)),
            "transformers takes rope_scaling; remove the one that is wrong",
        )
    return float(bases[0])


def to_hf(model: Model) -> dict[str, Any]:
    """Build the transformers config of a model that has none of its own."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": HF_MODEL_TYPE,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_query_groups,
        "intermediate_size": model.ffn_hidden_size,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.max_position_embeddings,
        "rms_norm_eps": model.norm_epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rotary_base},
        "tie_word_embeddings": model.tie_embeddings,
    }
