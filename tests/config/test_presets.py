from pathlib import Path

import pytest

from alignctl.config import presets
from alignctl.errors import UserError


def test_a_name_with_an_ending_or_a_slash_is_a_path() -> None:
    assert presets.find("mine.yaml") == Path("mine.yaml")
    assert presets.find("./mine") == Path("./mine")


def test_a_copy_keeps_the_comments_and_overwrites_nothing(tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    presets.copy("bloom-7b1", target)
    assert target.read_bytes() == (presets.folder() / "bloom-7b.yaml").read_bytes()
    with pytest.raises(UserError, match="exists already"):
        presets.copy("llama2-7b", target)
    with pytest.raises(UserError, match="No such file"):
        presets.copy("llama2-7b", tmp_path / "nowhere" / "mine.yaml")
