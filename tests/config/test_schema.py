import json
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from alignctl.config.presets import library as presets
from alignctl.config.presets.schema import preset_schema

SCHEMA: dict[str, Any] = json.loads(preset_schema())


@pytest.mark.parametrize("name", [*presets.names(), *presets.recipes()])
def test_every_preset_satisfies_the_schema(name: str) -> None:
    tree = yaml.load((presets.folder() / f"{name}.yaml").read_text(), Loader=yaml.SafeLoader)
    Draft202012Validator.check_schema(SCHEMA)
    assert list(Draft202012Validator(SCHEMA).iter_errors(tree)) == []


@pytest.mark.parametrize("at", ["sft.optimizer.lrr", "layout.parallel.tpp", "extend"])
def test_the_schema_refuses_a_misspelt_key(at: str) -> None:
    tree: dict[str, Any] = {"extends": ["llama2-7b", "mine.yaml"], "layout": {"parallel": {}}}
    assert list(Draft202012Validator(SCHEMA).iter_errors(tree)) == []
    *sections, last = at.split(".")
    place = tree
    for section in sections:
        place = place.setdefault(section, {})
    place[last] = 1
    assert len(list(Draft202012Validator(SCHEMA).iter_errors(tree))) == 1


def test_the_schema_carries_the_text_below_each_knob() -> None:
    knob = SCHEMA["$defs"]["Batch"]["properties"]["global_batch_size"]
    assert knob["description"] == (
        "Sequences per optimizer step, over all data-parallel ranks; with data.packing=step rows."
    )
