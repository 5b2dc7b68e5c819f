"""The architecture of a Megatron checkpoint that is not ours, from its arguments and its shapes.

Megatron-LM stores the namespace of its command line. What it does not tell (the base of the
rotary positions in old versions, the true size of the vocabulary) a preset can tell; what the
shapes tell is taken from them.
"""

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import ValidationError

from alignctl.checkpoints.tensors.lazy import LazyTensor
from alignctl.config.families import TRAITS
from alignctl.config.sections import Model, RopeScaling
from alignctl.errors import UserError
from alignctl.models.families import FAMILIES
from alignctl.models.weight_map import SCORE_HEADS

_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "apply_layernorm_1p": (False, None),
    "num_experts": (None, 0),
    "rotary_interleaved": (False, None),
    "rotary_percent": (1.0, 1, None),
    "rotary_seq_len_interpolation_factor": (None, 1),
    "multi_latent_attention": (False, None),
}
"""Arguments that change what the weights mean, with the values that do not."""

_NEEDED = {
    "may_scale_positions": "with scaled rotary positions",
    "may_set_head_dim": "with heads of a width of their own",
}

_SUPPORTED = f"supported are {', '.join(each.title for each in TRAITS.values())}"


def model_from(
    args: Any, tensors: Mapping[str, LazyTensor], *, where: str, expected: Model | None
) -> Model:
    """Read an architecture.

    Args:
        args: The stored namespace: any object with attributes, or None where there is none.
        tensors: Full tensors by our Megatron names, vocabulary padding included.
        where: The checkpoint, for messages.
        expected: The architecture of a preset, believed where the checkpoint says nothing.

    Raises:
        UserError: The model is not of a family of ours, or arguments and shapes contradict each
            other.
    """
    try:
        return _model_from(args, tensors, where, expected)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{where}: its arguments describe no model: {first['msg']}") from error
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{where}: its arguments describe no model: {error!r}") from error


def _model_from(
    args: Any, tensors: Mapping[str, LazyTensor], where: str, expected: Model | None
) -> Model:
    sizes = {
        key: _size(args, key, where, expected)
        for key in ("num_layers", "hidden_size", "num_attention_heads")
    }
    heads = sizes["num_attention_heads"]
    usual = sizes["hidden_size"] // heads
    width = _first(args, "kv_channels", "head_width") or usual
    scaling = _rope_scaling(args, expected)
    needed = {"may_scale_positions": scaling is not None, "may_set_head_dim": width != usual}
    family = family_of(tensors, where, expected, [name for name, is_so in needed.items() if is_so])
    traits = TRAITS[family]
    unsupported = {
        **_UNSUPPORTED,
        "qk_layernorm": (False, None, traits.has_qk_norm),
        "add_qkv_bias": (False, None, traits.has_qkv_bias),
    }
    for name, harmless in unsupported.items():
        if (value := getattr(args, name, None)) not in harmless:
            raise UserError(
                f"{where}: {name} = {value!r} in its arguments is not part of a family of ours",
                _SUPPORTED,
            )
    is_tied = "output_layer.weight" not in tensors
    is_scored = any(row.megatron in tensors for rows in SCORE_HEADS.values() for row in rows)
    if is_tied and not is_scored and getattr(args, "untie_embeddings_and_output_weights", False):
        raise UserError(f"{where}: no output_layer.weight in it, which its arguments tell of")
    embedding = tensors["embedding.word_embeddings.weight"]
    norm_epsilon = _first(args, "norm_epsilon", "layernorm_epsilon")
    padded = embedding.shape[0]
    return Model(
        family=family,
        **sizes,
        num_query_groups=(
            _query_groups(tensors, heads, width, where) if traits.is_rotary else heads
        ),
        head_dim=None if width * heads == sizes["hidden_size"] else width,
        rope_scaling=scaling,
        ffn_hidden_size=tensors["decoder.layers.0.mlp.linear_fc2.weight"].shape[1],
        vocab_size=_vocab_size(args, padded, where, expected),
        max_position_embeddings=_first(args, "max_position_embeddings")
        or (expected.max_position_embeddings if expected else 2048),
        norm_epsilon=norm_epsilon or (expected.norm_epsilon if expected else 1e-5),
        rotary_base=_rotary_base(args, expected) if traits.is_rotary else None,
        tie_embeddings=is_tied,
        vocab_divisor=_first(args, "make_vocab_size_divisible_by") or 128,
    )


def family_of(
    names: Collection[str],
    where: str,
    expected: Model | None = None,
    needed: Collection[str] = (),
) -> str:
    """Find the family of a model, by the weights that only some families have.

    Args:
        names: Its tensors, by our Megatron names.
        where: The checkpoint, for messages.
        expected: Whose family is taken where several have such weights; else the oldest one is.
        needed: Traits that it must have.

    Raises:
        UserError: It is a GPT model of another kind, or none.
    """
    for name in ("embedding.word_embeddings.weight", "decoder.layers.0.mlp.linear_fc2.weight"):
        if name not in names:
            raise UserError(f"{where}: no {name} in it: this is not a GPT model of Megatron's")
    own = {
        name: {row.megatron.format(layer=0) for row in family.weights}
        for name, family in FAMILIES.items()
    }
    every = set().union(*own.values())
    optional = {weight for weight in every if any(weight not in each for each in own.values())}
    found = optional.intersection(names)
    fitting = [
        name
        for name, weights in own.items()
        if weights & optional == found and all(getattr(TRAITS[name], need) for need in needed)
    ]
    if not fitting:
        nearest = min(own, key=lambda name: len(own[name] & optional ^ found))
        lacking, more = sorted(own[nearest] & optional - found), sorted(found - own[nearest])
        told = [f"without {name}" for name in lacking] + [f"with {name}" for name in more]
        told += [_NEEDED[need] for need in needed]
        raise UserError(
            f"{where}: a GPT model of no family of ours: like {TRAITS[nearest].title}, but "
            f"{', '.join(told)}",
            _SUPPORTED,
        )
    return expected.family if expected and expected.family in fitting else fitting[0]


def _first(args: Any, *names: str) -> Any:
    return next((found for name in names if (found := getattr(args, name, None)) is not None), None)


def _size(args: Any, name: str, where: str, expected: Model | None) -> int:
    value = _first(args, name)
    if value is None and expected is not None:
        value = getattr(expected, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{where}: {name} = {value!r} in its arguments is no size")
    return value


def _query_groups(tensors: Mapping[str, LazyTensor], heads: int, size: int, where: str) -> int:
    """Count query groups: the fused projection has (heads + 2 x groups) x size rows."""
    rows = tensors["decoder.layers.0.self_attention.linear_qkv.weight"].shape[0]
    groups = (rows // size - heads) // 2 if size else 0
    if groups < 1 or (heads + 2 * groups) * size != rows:
        raise UserError(
            f"{where}: {rows} rows of queries, keys and values do not fit {heads} heads of {size}"
        )
    return groups


def _vocab_size(args: Any, padded: int, where: str, expected: Model | None) -> int:
    """Count the rows that are tokens: told by the checkpoint, or by a preset, or else all."""
    told = _first(args, "orig_vocab_size", "true_vocab_size", "vocab_size")
    size = told or (expected.vocab_size if expected else padded)
    if not isinstance(size, int) or not 0 < size <= padded:
        raise UserError(
            f"{where}: a vocabulary of {size!r} tokens does not fit an embedding of {padded} rows"
        )
    return size


def _rope_scaling(args: Any, expected: Model | None) -> RopeScaling | None:
    """Read how positions are stretched: Megatron-LM's arguments tell the factor alone."""
    told = _first(args, "rope_scaling", "use_rope_scaling")
    if isinstance(told, RopeScaling):  # a preset's, where there are no arguments
        return told
    if told is None:
        return expected.rope_scaling if expected else None
    if not told:
        return None
    return RopeScaling(
        factor=float(_first(args, "rope_scaling_factor") or 8.0),
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )


def _rotary_base(args: Any, expected: Model | None) -> float:
    told = _first(args, "rotary_base", "rotary_emb_base")
    if told is None and expected:
        told = expected.rotary_base
    return float(told or 10000.0)
