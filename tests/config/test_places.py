import json
import os
from pathlib import Path

import pytest

from alignctl.config import places
from alignctl.errors import UserError
from tests.commands import alignctl


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def end(run: str) -> None:
    """Leaves what a finished run has."""
    Path(run).mkdir(parents=True)
    Path(run, "config.json").write_text("{}")
    Path(run, "result.json").write_text("{}")


def test_the_likeliest_place_counts() -> None:
    patterns = ("models/{preset}-mg", "models/{preset}")
    assert places.find(patterns, "mine.yaml", "--load") is None
    Path("models/mine").mkdir(parents=True)
    assert places.find(patterns, "mine.yaml", "--load") == Path("models/mine")
    Path("models/mine-mg").mkdir()
    assert places.find(patterns, "presets/mine.yaml", "--load") == Path("models/mine-mg")


def test_of_two_data_sets_none_is_chosen() -> None:
    for name in ("a", "b"):
        Path(f"data/{name}/sft").mkdir(parents=True)
    with pytest.raises(UserError, match="--data is missing, and could be data/a/sft or data/b/sft"):
        places.find(("data/*/sft",), "mine", "--data")


def test_indexed_datasets_are_found_by_their_folder() -> None:
    Path("data/wiki").mkdir(parents=True)
    for part in ("one", "two"):
        Path(f"data/wiki/{part}.idx").touch()
    assert places.find(("data/*/*.idx",), "mine", "--data") == Path("data/wiki")


def test_a_preset_s_name_is_no_pattern() -> None:
    Path("models/xx").mkdir(parents=True)
    assert places.find(("models/{preset}",), "*.yaml", "--load") is None


def test_a_run_that_has_not_ended_is_told_and_not_taken() -> None:
    Path("runs/mine-sft").mkdir(parents=True)
    Path("runs/mine-sft/config.json").write_text("{}")
    found = places.describe_search(("runs/{preset}-sft",), "mine")
    assert found == "looked for runs/mine-sft; runs/mine-sft is there, but not finished"
    with pytest.raises(UserError, match="runs/mine-sft is there, but not finished"):
        places.require_policy("mine")


def test_the_policy_is_that_of_the_run_that_ended_last() -> None:
    for number, stage in enumerate(("rlhf", "sft", "reward")):
        end(f"runs/mine-{stage}")
        Path(f"runs/mine-{stage}/result.json").touch()
        os.utime(f"runs/mine-{stage}/result.json", (number, number))
    assert places.require_policy("mine") == Path("runs/mine-sft")
    assert places.exported(Path("runs/mine-sft")) == Path("runs/mine-sft")
    Path("models/mine-sft").mkdir(parents=True)
    assert places.exported(Path("runs/mine-sft")) == Path("models/mine-sft")


def test_a_file_names_other_folders() -> None:
    Path("alignctl.yaml").write_text("models: /elsewhere/models\nruns: out\n")
    assert places.place("models", "x") == Path("/elsewhere/models/x")
    assert places.place("runs", "x") == Path("out/x")
    assert places.place("data", "x") == Path("data/x")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("modles: x", "alignctl.yaml:1: unknown key 'modles'; did you mean 'models'?"),
        ("models: 3", "alignctl.yaml:1: models"),
        ("models: [", "alignctl.yaml:2: not valid YAML"),
        ("- models", "alignctl.yaml"),
    ],
)
def test_a_file_with_a_mistake_is_refused_by_line(text: str, told: str) -> None:
    Path("alignctl.yaml").write_text(text + "\n")
    done = alignctl("sft", "--preset", "tiny-llama", "--dry-run")
    assert done.code == 2
    assert told in done.err


def test_a_dry_run_prints_every_choice() -> None:
    Path("models/tiny-llama").mkdir(parents=True)
    Path("data/sums/sft").mkdir(parents=True)
    done = alignctl("sft", "--preset", "tiny-llama", "--dry-run")
    assert done.code == 0, done.text
    assert "--load models/tiny-llama, by its name" in done.err
    config = json.loads(done.out[done.out.index("{") :])
    assert config["load"] == "models/tiny-llama"
    assert config["data"]["train"] == "data/sums/sft"


def test_where_nothing_is_the_places_and_a_command_are_named() -> None:
    done = alignctl("rlhf", "--preset", "tiny-llama")
    assert done.code == 2
    assert (
        "looked for runs/tiny-llama-sft: `alignctl sft --preset tiny-llama` writes there"
        in done.err
    )
    assert "looked for data/alignment, data/*/alignment: `alignctl prepare` writes" in done.err


def test_a_rule_needs_no_reward_model_though_there_is_one() -> None:
    end("runs/tiny-llama-sft")
    end("runs/tiny-llama-reward")
    Path("data/sums/math").mkdir(parents=True)
    done = alignctl("grpo", "--preset", "tiny-llama", "--dry-run")
    assert done.code == 0, done.text
    assert json.loads(done.out[done.out.index("{") :])["reward_load"] is None


def test_a_run_that_was_started_keeps_what_it_was_told(tmp_path: Path) -> None:
    Path("models/tiny-llama").mkdir(parents=True)
    run = tmp_path / "runs" / "tiny-llama-sft"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"load": "mine", "data": {"train": "rows"}}))
    done = alignctl("sft", "--preset", "tiny-llama", "--dry-run")
    assert "--load mine, by its name" in done.err
    assert "--data rows, by its name" in done.err


def test_what_evaluation_lacks_is_told_with_the_command_that_makes_it() -> None:
    for words, maker in (
        (("convert-mg2hf", "--role", "reward"), "alignctl reward --preset mine"),
        (("eval", "math", "model"), "alignctl prepare"),
    ):
        done = alignctl(*words, "--preset", "mine")
        assert done.code == 2
        assert f"hint: {maker} writes there" in done.err
