"""The names that weights had in Megatron-LM over the years, and the ones that are written.

    language_model.encoder.layers.0.self_attention.query_key_value.weight    legacy
    decoder.layers.0.self_attention.linear_qkv.weight                        Megatron-Core, ours

Sources: Megatron-LM v1.0 to core_r0.8.0 (`megatron/legacy/model`), PAI-Megatron-Patch v0.5.0.
"""

import re

from alignctl.checkpoints.formats.wrapped_names import unwrap
from alignctl.models.family import Legacy

_RULES = tuple(
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"^language_model\.", ""),
        (r"^(transformer|encoder)\.", "decoder."),
        (r"^(decoder\.layers\.\d+)\.attention\.", r"\1.self_attention."),
        (r"\.input_norm\.", ".input_layernorm."),
        (r"\.post_attention_(layer)?norm\.", ".pre_mlp_layernorm."),
        (r"^decoder\.final_norm\.", "decoder.final_layernorm."),
        (r"\.query_key_value\.", ".linear_qkv."),
        (r"\.self_attention\.dense\.", ".self_attention.linear_proj."),
        (r"\.mlp\.dense_h_to_4h\.", ".mlp.linear_fc1."),
        (r"\.mlp\.dense_4h_to_h\.", ".mlp.linear_fc2."),
        (r"^embedding\.word_embeddings\.norm\.", "embedding.layernorm."),
        # Transformer Engine fuses a norm with the linear that follows it.
        (r"\.self_attention\.linear_qkv\.layer_norm_", ".input_layernorm."),
        (r"\.mlp\.linear_fc1\.layer_norm_", ".pre_mlp_layernorm."),
    )
)

FOR_HEAD = "word_embeddings_for_head.weight"
"""Beside the language model: the copy of a tied embedding on the last stage; in the reward models
of PAI the row that scores."""

_LAYER = {
    "self_attention.linear_qkv": "self_attention.query_key_value",
    "self_attention.linear_proj": "self_attention.dense",
    "mlp.linear_fc1": "mlp.dense_h_to_4h",
    "mlp.linear_fc2": "mlp.dense_4h_to_h",
}


def ours(stored: str) -> str:
    """Translate a stored name (nesting joined by dots) to our Megatron name; keep unknown ones."""
    stored = unwrap(stored)
    for pattern, replacement in _RULES:
        stored = pattern.sub(replacement, stored)
    return stored


def place(name: str, legacy: Legacy) -> tuple[str, ...]:
    """Return the keys of a weight in the nested dicts of a legacy file.

    Args:
        name: Our Megatron name, its layer counted within the pipeline stage.
        legacy: Whose generation of names is written.
    """
    if name.startswith("embedding.word_embeddings."):
        return "language_model", "embedding", "word_embeddings", "weight"
    if name.startswith("embedding.layernorm."):
        part = name.rsplit(".", 1)[1]
        return "language_model", "embedding", "word_embeddings", f"norm.{part}"
    if name == "output_layer.weight":
        return "language_model", "output_layer", "weight"
    if name == "score.weight":
        return tuple(FOR_HEAD.split("."))
    if name.startswith("pooler_head."):
        return "pooler_head", name.removeprefix("pooler_head.")
    rest = name.removeprefix("decoder.")
    for new, old in (*_LAYER.items(), *legacy.norms.items()):
        rest = re.sub(rf"(^|\.){re.escape(new)}\.", rf"\1{old}.", rest)
    return "language_model", "encoder", rest
