from pathlib import Path

import pytest

from alignctl.config.presets import library as presets
from alignctl.errors import UserError


def test_a_name_with_an_ending_or_a_slash_is_a_path() -> None:
    assert presets.find("mine.yaml") == Path("mine.yaml")
    assert presets.find("./mine") == Path("./mine")


def test_recipes_are_found_by_name_and_a_misspelt_one_is_named() -> None:
    assert presets.find("recipes/llama2") == presets.folder() / "recipes" / "llama2.yaml"
    with pytest.raises(UserError) as caught:
        presets.find("recipes/lama2")
    assert caught.value.message.endswith("(did you mean recipes/llama2?)")
    assert caught.value.hint is not None
    assert all(name in caught.value.hint for name in presets.recipes())
