"""Tables and names."""

import json
from pathlib import Path

import pytest

from alignctl.errors import UserError
from alignctl.evaluation import results


def test_models_are_called_by_what_tells_them_apart() -> None:
    assert results.names_of([Path("runs/sft"), Path("runs/dpo")]) == ["sft", "dpo"]
    assert results.names_of([Path("/a/hf"), Path("/b/hf")]) == ["a-hf", "b-hf"]
    with pytest.raises(UserError, match="is there twice"):
        results.names_of([Path("runs/sft"), Path("runs/../runs/sft")])


def test_names_stand_to_the_left_and_numbers_to_the_right() -> None:
    rows = {"problems": ["12", "1,319"], "x": ["1", "2"]}
    assert results.table("", ["sft", "grpo"], rows).splitlines() == [
        "          sft   grpo",
        "problems   12  1,319",
        "x           1      2",
    ]


def test_the_result_is_a_file_and_the_same_text(tmp_path: Path) -> None:
    text = results.write(tmp_path, {"eval": "math"})
    assert json.loads(text) == json.loads((tmp_path / "result.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
