"""Keys of a transformers config that change what it computes, and that no family of ours has.

What is named here was looked up in transformers 5.19: its configs take any key, and its models read
more of them than the config classes list. Keys of one family are in the family's own module.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from alignctl.errors import UserError


def _is_none(value: Any) -> bool:
    return value is None


def _is_false(value: Any) -> bool:
    return not value


def _is_full_attention(value: Any) -> bool:
    return value is None or (isinstance(value, list) and set(value) <= {"full_attention"})


def _is_own_code(value: Any) -> bool:
    return not any(str(key).startswith(("AutoModel", "AutoConfig")) for key in value or ())


_HARMLESS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "quantization_config": (_is_none, "a quantised model cannot be trained: take the original"),
    "compression_config": (_is_none, "a compressed model cannot be trained: take the original"),
    "transformers_weights": (_is_none, "the weights are read from the usual files only"),
    "auto_map": (
        _is_own_code,
        "the model comes with code of its own, which is not run; if transformers' own class means "
        "the same, remove the key",
    ),
    "is_causal": (lambda value: value is True, "attention looks back only"),
    "is_encoder_decoder": (_is_false, "only decoders are trained"),
    "add_cross_attention": (_is_false, "only decoders are trained"),
    "sliding_window": (_is_none, "attention is over all tokens before"),
    "attention_chunk_size": (_is_none, "attention is over all tokens before"),
    "layer_types": (_is_full_attention, "attention is over all tokens before, in every layer"),
    "per_layer_config": (_is_false, "all layers are of one shape"),
    "pruned_heads": (_is_false, "all layers are of one shape"),
    "num_experts": (_is_none, "only dense models are trained, without experts"),
    "num_local_experts": (_is_none, "only dense models are trained, without experts"),
    "vision_config": (_is_none, "only models of text are trained"),
    "dual_chunk_attention_config": (_is_none, "attention is over all tokens before, at once"),
    "fusion_config": (_is_false, "remove the key: the model is the same without it"),
    "partial_rotary_factor": (
        lambda value: value is None or value == 1,
        "rotary positions turn all of a head",
    ),
}
"""Of each key, whether a value leaves things as they are, and what to do or know where not."""


_OTHERS: Mapping[str, str] = {
    "num_experts": "a mixture of experts",
    "num_local_experts": "a mixture of experts",
    "n_routed_experts": "a mixture of experts",
    "vision_config": "a model of more than text",
    "audio_config": "a model of more than text",
    "text_config": "a model of more than text",
    "auto_map": "a model with code of its own, which is not run",
}


def explain(config: Mapping[str, Any]) -> str:
    """Say what a config of no family of ours is, as far as its keys tell; empty where they do not.

    Args:
        config: The parsed `config.json`.
    """
    found = dict.fromkeys(what for key, what in _OTHERS.items() if config.get(key))
    return f": it is {' and '.join(found)}" if found else ""


def check(config: Mapping[str, Any], where: str, judged: Collection[str] = ()) -> None:
    """Refuse what changes the computation beyond what a family of ours has.

    Args:
        config: The parsed `config.json`.
        where: The file's name, for messages.
        judged: Keys that its family judges by itself.

    Raises:
        UserError: A key asks for it.
    """
    for key, (is_harmless, hint) in _HARMLESS.items():
        if key in config and key not in judged and not is_harmless(config[key]):
            raise UserError(f"{where}: {key} = {shown(config[key])} is not supported", hint)
    pad, rows = config.get("pad_token_id"), config.get("vocab_size")
    if isinstance(pad, int) and isinstance(rows, int) and not -rows <= pad < rows:
        raise UserError(
            f"{where}: pad_token_id = {pad} is beyond the {rows} rows of vocab_size",
            "transformers cannot load such a model; write null, or the id of a token that it has",
        )
    if not isinstance(tied := config.get("tie_word_embeddings", False), bool):
        raise UserError(f"{where}: tie_word_embeddings = {shown(tied)} is neither true nor false")


def shown(value: Any) -> str:
    """Return a value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def first_of(config: Mapping[str, Any], where: str, *names: str) -> Any:
    """Return what a config says under any of the names of one thing.

    Raises:
        UserError: It says different things under two of them.
        KeyError: It says nothing.
    """
    told = {name: config[name] for name in names if config.get(name) is not None}
    if not told:
        raise KeyError(names[0])
    (name, value), *others = told.items()
    for other, another in others:
        if another != value:
            raise UserError(
                f"{where}: {name} = {shown(value)} and {other} = {shown(another)} contradict each "
                "other",
                "both mean the same: remove the one that is wrong",
            )
    return value
