"""The families by name, and which of them a Hugging Face `config.json` belongs to."""

from collections.abc import Collection, Mapping
from importlib import import_module
from typing import Any

from pydantic import ValidationError

from alignctl.config.families import TRAITS
from alignctl.config.sections import Head, Model
from alignctl.errors import UserError
from alignctl.models import hf_config
from alignctl.models.family import OUTPUT, Family
from alignctl.models.weight_map import SCORE_HEADS, Weight, expand

FAMILIES: dict[str, Family] = {
    name: import_module(f"alignctl.models.{name}").FAMILY for name in TRAITS
}


def weight_map(model: Model, head: Head = "lm") -> dict[str, Weight]:
    """List the weights of a model by their Megatron names, in model order.

    Args:
        model: The architecture.
        head: What is on top; an output layer that is tied to the embedding is not a weight.
    """
    family = FAMILIES[model.family]
    output = () if model.tie_embeddings else (OUTPUT,)
    top = output if head == "lm" else SCORE_HEADS[head]
    return expand((*family.weights, *top), model.num_layers)


def head_of(names: Collection[str]) -> Head:
    """Find what is on top of a model, by the tensors that are there; formats share their names."""
    heads: tuple[Head, ...] = ("linear", "pooler")
    for head in heads:
        if any(row.megatron in names for row in SCORE_HEADS[head]):
            return head
    return "lm"


def config_of_head(model: Model, head: Head, config: Mapping[str, Any]) -> dict[str, Any]:
    """List what a transformers config must say about a head, where it says something else.

    A linear score is transformers' own class for sequences with one label. For two layers it has
    none: the layers are loaded as a model without a head.

    Args:
        model: The architecture.
        head: What is on top.
        config: The config as it is.
    """
    suffix = {"lm": "ForCausalLM", "linear": "ForSequenceClassification", "pooler": "Model"}[head]
    architectures, labels = config.get("architectures"), config.get("id2label")
    told = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    changes: dict[str, Any] = {}
    if not told.endswith(suffix) and (told.endswith("ForSequenceClassification") or head != "lm"):
        changes["architectures"] = [model.traits.hf_class + suffix]
    num_labels = config.get("num_labels", len(labels) if isinstance(labels, dict) else 2)
    if head == "linear" and num_labels != 1:
        changes |= {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return changes


def model_from_hf(config: Mapping[str, Any], *, where: str, vocab_divisor: int = 128) -> Model:
    """Read the architecture from a transformers config.

    Args:
        config: The parsed `config.json`.
        where: The file's name, for messages.
        vocab_divisor: What the padded vocabulary is a multiple of, per tensor-parallel rank.

    Raises:
        UserError: The model type is not a family of ours, or a key is missing or impossible.
    """
    family = _family_of(config, where)
    hf_config.check(config, where, family.judges)
    try:
        return family.from_hf(config, where=where, vocab_divisor=vocab_divisor)
    except KeyError as error:
        raise UserError(f"{where}: key {error.args[0]!r} is missing") from error
    except ValidationError as error:
        raise UserError(f"{where}: {_first_problem(error)}") from error
    except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{where}: a value in it is of the wrong kind: {error}") from error


def _family_of(config: Mapping[str, Any], where: str) -> Family:
    kind = config.get("model_type")
    found = [family for family in FAMILIES.values() if family.hf_model_type == kind]
    if not found:
        supported = ", ".join(dict.fromkeys(each.hf_model_type for each in FAMILIES.values()))
        raise UserError(
            f"{where}: model_type = {kind!r} is not supported{hf_config.explain(config)}",
            f"supported model types: {supported}",
        )
    return next((each for each in found if each.is_own and each.is_own(config)), found[0])


def _first_problem(error: ValidationError) -> str:
    """Explain what is wrong, by our name of the knob, which is close to the config's."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    return f"{key}: {first['msg']} ({first['input']!r})" if key else first["msg"]


def differences(ours: Model, theirs: Model) -> list[str]:
    """List where two architectures disagree, as `key: ours != theirs`.

    What does not change a weight or its meaning (dropout, vocabulary padding, the position limit
    of a model without position weights) is not compared.
    """
    ignored = {
        "family",
        "vocab_divisor",
        "attention_dropout",
        "hidden_dropout",
        "max_position_embeddings",
    }
    # Families with one class in transformers compute the same.
    kinds = [FAMILIES[model.family].hf_model_type for model in (ours, theirs)]
    families = [f"family: {ours.family} != {theirs.family}"] if kinds[0] != kinds[1] else []
    return families + [
        f"{key}: {getattr(ours, key)} != {getattr(theirs, key)}"
        for key in type(ours).model_fields
        if key not in ignored and getattr(ours, key) != getattr(theirs, key)
    ]
