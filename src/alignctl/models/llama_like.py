"""What Llama-like families share: their weights, and how their Hugging Face configs are read."""

from collections.abc import Callable, Mapping
from typing import Any

from alignctl.config.families import TRAITS
from alignctl.config.sections import Model
from alignctl.errors import UserError
from alignctl.models import hf_rotary as rotary
from alignctl.models.family import Family, Legacy
from alignctl.models.hf_config import shown
from alignctl.models.weight_map import (
    GATED_COLUMN,
    GROUPED_QKV,
    REPLICATED,
    ROW,
    VOCABULARY,
    Layout,
    Weight,
)

LEGACY_NORMS = {
    "input_layernorm": "input_norm",
    "pre_mlp_layernorm": "post_attention_norm",
    "final_layernorm": "final_norm",
}


def _layer(megatron: str, layout: Layout, *hf: str) -> Weight:
    names = tuple(f"model.layers.{{layer}}.{name}" for name in hf)
    return Weight(f"decoder.layers.{{layer}}.{megatron}", names, layout, "layer")


def list_weights(family: str) -> tuple[Weight, ...]:
    """List the weights of a family below its head, in model order."""
    traits = TRAITS[family]
    qkv = [f"self_attn.{part}_proj" for part in "qkv"]
    kinds = ("weight", "bias") if traits.has_qkv_bias else ("weight",)
    return (
        Weight(
            "embedding.word_embeddings.weight",
            ("model.embed_tokens.weight",),
            VOCABULARY,
            "embedding",
        ),
        _layer("input_layernorm.weight", REPLICATED, "input_layernorm.weight"),
        *(
            _layer(
                f"self_attention.linear_qkv.{kind}",
                GROUPED_QKV,
                *(f"{part}.{kind}" for part in qkv),
            )
            for kind in kinds
        ),
        *(
            _layer(
                f"self_attention.{part}_layernorm.weight",
                REPLICATED,
                f"self_attn.{part}_norm.weight",
            )
            for part in ("qk" if traits.has_qk_norm else "")
        ),
        _layer("self_attention.linear_proj.weight", ROW, "self_attn.o_proj.weight"),
        _layer("pre_mlp_layernorm.weight", REPLICATED, "post_attention_layernorm.weight"),
        _layer(
            "mlp.linear_fc1.weight",
            GATED_COLUMN,
            "mlp.gate_proj.weight",
            "mlp.up_proj.weight",
        ),
        _layer("mlp.linear_fc2.weight", ROW, "mlp.down_proj.weight"),
        Weight("decoder.final_layernorm.weight", ("model.norm.weight",), REPLICATED, "head"),
    )


def describe(
    name: str,
    *,
    hf_model_type: str,
    from_hf: Callable[..., Model],
    to_hf: Callable[[Model], dict[str, Any]],
    legacy_tokenizer: str | None,
    **more: Any,
) -> Family:
    """Describe a family.

    Args:
        name: Of it and its module.
        hf_model_type: As for `Family`.
        from_hf: As for `Family`.
        to_hf: As for `Family`.
        legacy_tokenizer: Megatron-LM's tokenizer type; None where it has no such models by rank.
        more: Further fields of `Family`.
    """
    legacy = legacy_tokenizer and Legacy(LEGACY_NORMS, legacy_tokenizer, has_extra_states=True)
    return Family(
        weights=list_weights(name),
        hf_model_type=hf_model_type,
        hf_prefix="model.",
        hf_ignored=(".rotary_emb.inv_freq",),
        from_hf=from_hf,
        to_hf=to_hf,
        legacy=legacy or None,
        **more,
    )


def refuse_window(config: Mapping[str, Any], where: str) -> None:
    """Refuse a sliding window that is turned on, of configs that keep its size where it is off.

    Raises:
        UserError: It is on.
    """
    if config.get("use_sliding_window"):
        raise UserError(
            f"{where}: use_sliding_window = {shown(config['use_sliding_window'])} is not supported",
            "attention is over all tokens before",
        )


def read(
    family: str, config: Mapping[str, Any], *, where: str, vocab_divisor: int, has: str
) -> Model:
    """Read a transformers config.

    Args:
        family: Its family.
        config: The parsed `config.json`.
        where: Its name, for messages.
        vocab_divisor: `Model.vocab_divisor`.
        has: What models of the family have, for messages.

    Raises:
        UserError: The config asks for something that the family does not have.
    """
    traits = TRAITS[family]
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    width = config.get("head_dim") or hidden // heads
    is_own_width = config.get("head_dim") not in (None, hidden / heads)
    unsupported = {
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
        "hidden_act": config.get("hidden_act", "silu") not in ("silu", "swish"),
        "head_dim": is_own_width and not traits.may_set_head_dim,
    }
    if found := [key for key, is_unsupported in unsupported.items() if is_unsupported]:
        values = ", ".join(f"{key} = {config.get(key)!r}" for key in found)
        raise UserError(
            f"{where}: {values} is not part of the {traits.title} family",
            f"alignctl trains {traits.title} models: {has}",
        )
    groups = config.get("num_key_value_heads")
    divisions = [
        ("num_key_value_heads", heads if groups is None else groups, "num_attention_heads", heads)
    ]
    if not is_own_width:
        divisions.append(("num_attention_heads", heads, "hidden_size", hidden))
    for key, parts, name, whole in divisions:
        if parts < 1 or whole % parts:
            raise UserError(f"{where}: {key} = {parts} does not divide {name} = {whole}")
    if width % 2:
        raise UserError(f"{where}: heads of {width} cannot be turned: an odd size")
    rotary_base, rope_scaling = rotary.read(config, where, traits)
    return Model(
        family=family,
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        num_attention_heads=heads,
        num_query_groups=heads if groups is None else groups,
        ffn_hidden_size=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        max_position_embeddings=config["max_position_embeddings"],
        norm_epsilon=config["rms_norm_eps"],
        rotary_base=rotary_base,
        rope_scaling=rope_scaling,
        head_dim=width if is_own_width else None,
        tie_embeddings=config.get("tie_word_embeddings", False),
        vocab_divisor=vocab_divisor,
    )


def write(model: Model, **own: Any) -> dict[str, Any]:
    """Build the transformers config of a model that has none of its own.

    Args:
        model: The architecture.
        own: What only its family says.
    """
    return {
        "architectures": [f"{model.traits.hf_class}ForCausalLM"],
        "hidden_act": "silu",
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_query_groups,
        "intermediate_size": model.ffn_hidden_size,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.max_position_embeddings,
        "rms_norm_eps": model.norm_epsilon,
        "rope_parameters": rotary.write(model),
        "tie_word_embeddings": model.tie_embeddings,
        **own,
    }
