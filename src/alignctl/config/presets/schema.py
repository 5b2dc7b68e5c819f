"""The JSON schema of a preset file, for editors; the text below a knob is its description."""

import ast
import inspect
import json
import textwrap
from typing import Any

from pydantic import BaseModel

from alignctl.config.presets.load import PresetFile
from alignctl.config.presets.problems import items_of, sections_of


def preset_schema() -> str:
    """Write the JSON schema of a preset file.

    Nothing is required: what a file lacks may come from those that it extends, and what is missing
    in the whole is said by `alignctl presets validate`.
    """
    tree = PresetFile.model_json_schema()
    definitions = tree["$defs"]
    for model in _models(PresetFile):
        schema = tree if model is PresetFile else definitions[model.__name__]
        schema.pop("required", None)
        documents = describe_fields(model)
        for name, knob in schema["properties"].items():
            if name in documents:
                knob["description"] = documents[name]
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **tree}, indent=2)


def describe_fields(model: type[BaseModel]) -> dict[str, str]:
    """Read the text below each field of a model and of the models it inherits from."""
    documents: dict[str, str] = {}
    for each in reversed(model.__mro__):
        if issubclass(each, BaseModel) and each is not BaseModel:
            documents |= _texts_below_fields(each)
    return documents


def _texts_below_fields(model: type[Any]) -> dict[str, str]:
    definition = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            texts[field.target.id] = inspect.cleandoc(text.value.value)
    return texts


def _models(model: type[BaseModel]) -> set[type[BaseModel]]:
    """Collect a model and all the sections below it."""
    found = {model}
    for field in model.model_fields.values():
        for section in (*sections_of(field.annotation), *items_of(field.annotation)):
            found |= _models(section)
    return found
