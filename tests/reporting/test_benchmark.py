import json
import math
from pathlib import Path

import pytest

from alignctl.errors import UserError
from alignctl.reporting.page.benchmark import read
from tests.reporting.run_folders import write_marks


def test_models_of_several_files_stand_side_by_side(tmp_path: Path) -> None:
    first = write_marks(tmp_path / "one", sft={"writing": 4.55, "coding": 2.05, "poetry": 1.0})
    second = write_marks(tmp_path / "two", sft={"coding": 3.0}, dpo={"coding": 2.17})
    benchmark = read([first, second])
    assert [model.name for model in benchmark.models] == ["sft", "sft (two)", "dpo"]
    assert benchmark.categories == ["coding", "writing", "poetry"]
    assert benchmark.best("coding") == 3.0
    assert math.isnan(benchmark.models[1].score("writing"))
    assert benchmark.models[0].interval == (3.5, 4.5)
    assert benchmark.models[0].failures == 1
    assert benchmark.judges == ["one: judged by gpt-4", "two: judged by gpt-4"]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"models": []}', '{"models": {"a": 1}}'])
def test_what_is_no_result_is_refused_by_name(tmp_path: Path, content: str) -> None:
    file = tmp_path / "mt_bench.json"
    file.write_text(content)
    with pytest.raises(UserError, match=r"mt_bench\.json"):
        read([file])


def test_what_is_missing_is_unknown_not_zero(tmp_path: Path) -> None:
    file = tmp_path / "mt_bench.json"
    file.write_text(json.dumps({"models": {"a": {"categories": {"math": None}}}}))
    [model] = read([file]).models
    assert math.isnan(model.average)
    assert math.isnan(model.score("math"))
    assert (model.interval, model.failures) == (None, 0)
