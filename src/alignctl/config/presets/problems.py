"""What is wrong with a configuration, in sentences that name the culprit and the mend."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from alignctl.config.presets.document import KeyPath, Origin, shortened
from alignctl.errors import UserError

_TYPES = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a word",
    "path_type": "a path",
    "list_type": "a list",
    "dict_type": "a mapping, such as {name: value}",
    "model_type": "a section of keys",
    "model_attributes_type": "a section of keys",
}
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}

_FOLLOWS = dict.fromkeys(("ranks", "processes"), ("launch.nproc_per_node", "launch.nnodes"))
"""Words of rules for numbers that nobody wrote down, with the keys that they follow from."""


def known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """List every key of a model and of its sections, with dots."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        keys.append(key)
        for section in sections_of(field.annotation):
            keys.extend(known_keys(section, f"{key}."))
    return keys


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """Write a clause with the known key that resembles `key` most, or nothing."""
    known = list(known)
    matches = get_close_matches(key, known, n=1, cutoff=0.7)
    if not matches:
        # Someone who typed the last word alone, or the right word in the wrong section.
        leaf = key.rpartition(".")[2]
        leaves = {name.rpartition(".")[2]: name for name in reversed(known)}
        matches = [leaves[name] for name in get_close_matches(leaf, leaves, n=1, cutoff=0.75)]
    return f"; did you mean {matches[0]!r}?" if matches else ""


def describe(
    error: ValidationError,
    model: type[BaseModel],
    origins: Mapping[KeyPath, Origin],
    fallback: Origin,
    *,
    is_part: bool = False,
) -> list[str]:
    """Describe each thing that is wrong in one line, led by where it was written.

    Args:
        error: What Pydantic found.
        model: The class that was to be made.
        origins: Where the keys of the document come from.
        fallback: The origin of what nobody wrote, such as a missing section.
        is_part: Whether more is to come, so that nothing is missing yet.
    """
    known = known_keys(model)
    lines: list[str] = []
    for detail in error.errors(include_url=False):
        path = detail["loc"]
        if is_part and detail["type"] == "missing":
            continue
        if detail["type"] == "value_error":
            rules = str(detail["ctx"]["error"]).splitlines()
            lines.extend(
                f"{_culprit(rule, path, origins, fallback).text}: {rule}" for rule in rules
            )
        else:
            origin = _nearest(path, origins, fallback)
            lines.append(f"{origin.text}: {_sentence(detail, known)}")
    return lines


def refuse(problems: list[str], hint: str | None = None) -> UserError:
    """Make the error that lists all problems."""
    if len(problems) == 1:
        return UserError(problems[0], hint=hint)
    listed = "\n".join(f"  {problem}" for problem in problems)
    return UserError(f"{len(problems)} problems:\n{listed}", hint=hint)


def _sentence(detail: ErrorDetails, known: list[str]) -> str:
    key = ".".join(map(str, detail["loc"]))
    kind, found, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key {key!r}{did_you_mean(key, known)}"
    if kind == "missing":
        return f"key {key!r} is missing"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        guess = did_you_mean(str(found), choices)
        return f"{key} must be one of {', '.join(choices)}; found {quoted(found)}{guess}"
    if kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        return f"{key} must be {words} {_plain(context[name])}; found {quoted(found)}"
    if kind in _TYPES:
        return f"{key} must be {_TYPES[kind]}; found {quoted(found)}"
    return f"{key}: {detail['msg']}; found {quoted(found)}"


def _plain(bound: float) -> str:
    """Write a bound with all its digits, as long as they can be read."""
    return str(int(bound)) if bound == int(bound) and abs(bound) < 1e15 else f"{bound:g}"


def quoted(value: Any) -> str:
    """Write a value as the user would, with its quotes when it is text."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "a section of keys"
    return shortened(value)


def _nearest(path: KeyPath, origins: Mapping[KeyPath, Origin], fallback: Origin) -> Origin:
    """Find the origin of a key, or of the innermost section around it."""
    for length in range(len(path), 0, -1):
        if path[:length] in origins:
            return origins[path[:length]]
    return fallback


def _culprit(
    rule: str, path: KeyPath, origins: Mapping[KeyPath, Origin], fallback: Origin
) -> Origin:
    """Find the origin of the key to blame, of those that a broken rule names.

    That is what was typed, else what the nearest file says, and of several the first.
    """
    words = [word.rstrip(".,:;)") for word in rule.replace("(", " ").split()]
    keys = [key for word in words for key in (word, *_FOLLOWS.get(word, ()))]
    named = [origins[at] for key in keys if (at := (*path, *key.split("."))) in origins]
    if not named:
        return _nearest(path, origins, fallback)
    return min(named, key=lambda origin: (not origin.is_command_line, origin.distance))


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """List the models that a field of this type may hold; none where it holds a list of them."""
    if get_origin(annotation) is list:
        return []
    candidates = (annotation, *get_args(annotation))
    return [each for each in candidates if isinstance(each, type) and issubclass(each, BaseModel)]


def items_of(annotation: Any) -> list[type[BaseModel]]:
    """List the models that a field of this type holds a list of."""
    return sections_of(get_args(annotation)[0]) if get_origin(annotation) is list else []


def is_table(model: type[BaseModel], key: str) -> bool:
    """Tell whether what is below a key are names of the user's own, such as paths."""
    section, _, rest = key.partition(".")
    field = model.model_fields.get(section)
    if field is None:
        return False
    if rest:
        return any(is_table(each, rest) for each in sections_of(field.annotation))
    return any(get_origin(each) is dict for each in (field.annotation, *get_args(field.annotation)))
