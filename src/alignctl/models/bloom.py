"""Bloom: ALiBi, LayerNorm after the embedding, biases everywhere, tanh GELU, tied embeddings."""

from collections.abc import Mapping
from typing import Any

from alignctl.config.sections import Model
from alignctl.errors import UserError
from alignctl.models.family import Family, Legacy
from alignctl.models.hf_config import first_of
from alignctl.models.weight_map import COLUMN, REPLICATED, ROW, VOCABULARY, Layout, Weight


def _linear(megatron: str, hf: str, weight: Layout, bias: Layout) -> tuple[Weight, Weight]:
    name, hf_name = f"decoder.layers.{{layer}}.{megatron}", f"transformer.h.{{layer}}.{hf}"
    return (
        Weight(f"{name}.weight", (f"{hf_name}.weight",), weight, "layer"),
        Weight(f"{name}.bias", (f"{hf_name}.bias",), bias, "layer"),
    )


_WEIGHTS = (
    Weight(
        "embedding.word_embeddings.weight",
        ("transformer.word_embeddings.weight",),
        VOCABULARY,
        "embedding",
    ),
    Weight(
        "embedding.layernorm.weight",
        ("transformer.word_embeddings_layernorm.weight",),
        REPLICATED,
        "embedding",
    ),
    Weight(
        "embedding.layernorm.bias",
        ("transformer.word_embeddings_layernorm.bias",),
        REPLICATED,
        "embedding",
    ),
    *_linear("input_layernorm", "input_layernorm", REPLICATED, REPLICATED),
    # Bloom stores [q k v] per head, which is Megatron's own order with one query per group.
    *_linear("self_attention.linear_qkv", "self_attention.query_key_value", COLUMN, COLUMN),
    *_linear("self_attention.linear_proj", "self_attention.dense", ROW, REPLICATED),
    *_linear("pre_mlp_layernorm", "post_attention_layernorm", REPLICATED, REPLICATED),
    *_linear("mlp.linear_fc1", "mlp.dense_h_to_4h", COLUMN, COLUMN),
    *_linear("mlp.linear_fc2", "mlp.dense_4h_to_h", ROW, REPLICATED),
    Weight("decoder.final_layernorm.weight", ("transformer.ln_f.weight",), REPLICATED, "head"),
    Weight("decoder.final_layernorm.bias", ("transformer.ln_f.bias",), REPLICATED, "head"),
)


def from_hf(config: Mapping[str, Any], *, where: str, vocab_divisor: int) -> Model:
    """Read a transformers `BloomConfig`, old key names included.

    Raises:
        UserError: The residual connection comes after the norm (no published Bloom has that), two
            keys contradict each other, or biases are left out.
    """
    if config.get("apply_residual_connection_post_layernorm"):
        raise UserError(
            f"{where}: apply_residual_connection_post_layernorm = true is not supported",
            "every published Bloom model has it false",
        )
    hidden = first_of(config, where, "hidden_size", "n_embed")
    heads = first_of(config, where, "n_head", "num_attention_heads")
    if config.get("slow_but_exact") and config.get("pretraining_tp", 1) != 1:
        raise UserError(
            f"{where}: slow_but_exact = true with pretraining_tp = {config['pretraining_tp']} is "
            "not supported",
            "transformers then leaves out two biases of every layer; set slow_but_exact to false",
        )
    if config.get("n_inner") not in (None, 4 * hidden):
        raise UserError(
            f"{where}: n_inner = {config['n_inner']} is not four times hidden_size = {hidden}"
        )
    return Model(
        family="bloom",
        num_layers=first_of(config, where, "n_layer", "num_hidden_layers"),
        hidden_size=hidden,
        num_attention_heads=heads,
        num_query_groups=heads,
        ffn_hidden_size=4 * hidden,
        vocab_size=config["vocab_size"],
        # ALiBi sets no limit; 2048 is what the published models saw in training.
        max_position_embeddings=config.get("seq_length") or 2048,
        norm_epsilon=config["layer_norm_epsilon"],
        rotary_base=None,
        tie_embeddings=config.get("tie_word_embeddings", True),
        vocab_divisor=vocab_divisor,
    )


def to_hf(model: Model) -> dict[str, Any]:
    """Build the transformers config of a model that has none of its own."""
    return {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "n_layer": model.num_layers,
        "hidden_size": model.hidden_size,
        "n_head": model.num_attention_heads,
        "vocab_size": model.vocab_size,
        "seq_length": model.max_position_embeddings,
        "layer_norm_epsilon": model.norm_epsilon,
        "tie_word_embeddings": model.tie_embeddings,
        "attention_dropout": model.attention_dropout,
        "hidden_dropout": model.hidden_dropout,
    }


FAMILY = Family(
    weights=_WEIGHTS,
    hf_model_type="bloom",
    hf_prefix="transformer.",
    hf_ignored=(".self_attention.masked_bias", ".self_attention.bias"),
    from_hf=from_hf,
    to_hf=to_hf,
    # PAI's Bloom is of the time before Megatron-LM shortened these names.
    legacy=Legacy(
        {
            "input_layernorm": "input_layernorm",
            "pre_mlp_layernorm": "post_attention_layernorm",
            "final_layernorm": "final_layernorm",
        },
        tokenizer_type="AutoTokenizer",
        has_extra_states=False,
    ),
)
