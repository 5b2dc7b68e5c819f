import re
from pathlib import Path

import pytest

from alignctl.config import inputs
from alignctl.config.on_policy_run import RLHFConfig
from alignctl.config.presets.load import resolve
from alignctl.config.pretrain import PretrainConfig
from alignctl.config.run import DPOConfig, RewardConfig, SFTConfig, TrainingConfig
from alignctl.errors import UserError
from alignctl.stages.shared.stage import load_stage

NO_MODEL = (
    "--load is missing: a model folder to start from; looked for models/tiny-llama-mg, "
    "models/tiny-llama: `alignctl convert-hf2mg --preset tiny-llama --load DIR` writes there"
)


def config(*overrides: str, **flags: Path) -> SFTConfig:
    keys = {"data": "data.train", "validation": "data.validation"}
    named = {keys.get(name, name): path for name, path in flags.items()}
    return resolve(SFTConfig, "tiny-llama", {"output": "runs/x", **named}, overrides)


def require_inputs(config: TrainingConfig, *, is_started: bool = False) -> None:
    inputs.require_inputs(load_stage(config.stage).inputs, config, is_started=is_started)


def missing_inputs(config: TrainingConfig) -> list[str]:
    return inputs.missing_inputs(load_stage(config.stage).inputs, config)


def test_every_missing_input_is_named_with_its_flag(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        require_inputs(config(data=tmp_path / "rows.jsonl", tokenizer=tmp_path / "tokenizer"))
    assert caught.value.message.splitlines() == [
        "3 problems:",
        f"  {NO_MODEL}",
        f"  --data {tmp_path}/rows.jsonl does not exist",
        f"  --tokenizer {tmp_path}/tokenizer does not exist",
    ]


def test_a_misspelt_path_is_told_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(UserError) as caught:
        require_inputs(config(load=tmp_path, data=tmp_path / "trian.jsonl"))
    assert caught.value.message == (
        f"--data {tmp_path}/trian.jsonl does not exist; did you mean {tmp_path}/train.jsonl?"
    )
    assert caught.value.hint is None


def test_a_run_that_is_only_shown_notes_what_is_not_here(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").touch()
    found = config(
        load=tmp_path / "mg", data=tmp_path / "train.jsonl", tokenizer=tmp_path / "train.json"
    )
    assert missing_inputs(found) == [
        f"--load {tmp_path}/mg: not found here",
        f"--tokenizer {tmp_path}/train.json: not found here; did you mean {tmp_path}/train.jsonl?",
    ]
    assert missing_inputs(config()) == [
        NO_MODEL,
        "--data is missing: a file or folder of training rows (or data.blend); looked for "
        "data/sft, data/*/sft: `alignctl prepare` writes there",
    ]


def test_indexed_datasets_are_looked_for_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "here.idx").touch()
    blend = f"data.blend={{{tmp_path}/here: 1.0, {tmp_path}/gone: 1.0}}"
    flags = {"output": Path("runs/x"), "load": tmp_path}
    found = resolve(PretrainConfig, "tiny-llama", flags, [blend, "train.steps=2"])
    assert missing_inputs(found) == [f"data.blend {tmp_path}/gone: not found here"]


def test_the_sources_of_a_blend_are_inputs_in_the_place_of_data(tmp_path: Path) -> None:
    here = tmp_path / "here.jsonl"
    here.touch()
    found = config(f"data.blend={{{here}: 3, {tmp_path}/heer.jsonl: 1}}", load=tmp_path)
    with pytest.raises(UserError) as caught:
        require_inputs(found)
    assert caught.value.message == (
        f"data.blend {tmp_path}/heer.jsonl does not exist; did you mean {here}?"
    )
    require_inputs(config(f"data.blend={{{here}: 3, {tmp_path}: 1}}", load=tmp_path))


@pytest.mark.parametrize("stage", [SFTConfig, RewardConfig, DPOConfig, RLHFConfig])
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.blend={a: 1, b: 0}"], "data.blend.b must be greater than 0; found 0"),
        (["data.blend={a: 1, b: -2}"], "data.blend.b must be greater than 0; found -2"),
        (["data.blend={a: 1, b: .nan}"], "data.blend.b must be a finite number; found nan"),
        (["data.blend={a: 1, b: 1}", "data.train=c"], "both of data.train c and data.blend set"),
        (["data.blend={a: 1}"], "data.blend names a alone, which is no blend: give --data a"),
        (["data.blend={a: 1, b: 1, ./a: 2}"], "data.blend names a twice: as a and as ./a"),
        (["data.blend={}"], "data.blend is empty"),
    ],
)
def test_what_is_no_blend_is_refused(
    stage: type[TrainingConfig], overrides: list[str], words: str
) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        resolve(stage, "tiny-llama", {"output": Path("runs/x")}, overrides)


def test_nothing_depends_on_the_order_in_which_a_blend_is_written() -> None:
    one, other = (config(f"data.blend={{{text}}}") for text in ("a: 3, b: 1", "b: 1, a: 3"))
    assert list(one.data.weights.items()) == list(other.data.weights.items())
    assert list(one.data.weights.values()) == [3, 1]


def test_inputs_that_are_there_are_accepted(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.touch()
    require_inputs(config(load=tmp_path, data=rows, validation=rows))
    gone = config(load=tmp_path / "gone", data=rows)
    require_inputs(gone, is_started=True)
    with pytest.raises(UserError, match="gone does not exist"):
        require_inputs(gone)


def on_policy(*overrides: str, **flags: Path) -> RLHFConfig:
    named = {"output": "runs/x", "data.train": Path("/"), "load": Path("/"), **flags}
    return resolve(RLHFConfig, "tiny-llama", named, overrides)


def test_the_models_beside_the_policy_have_to_be_there(tmp_path: Path) -> None:
    (tmp_path / "reward").mkdir()
    value = tmp_path / "valeu"
    with pytest.raises(UserError) as caught:
        require_inputs(on_policy(f"value.load={value}", reward_load=tmp_path / "rewrad"))
    assert caught.value.message.splitlines() == [
        "2 problems:",
        f"  --reward-load {tmp_path}/rewrad does not exist; did you mean {tmp_path}/reward?",
        f"  value.load {value} does not exist",
    ]


def test_a_missing_reward_model_is_asked_for_where_one_scores() -> None:
    with pytest.raises(UserError) as caught:
        require_inputs(on_policy())
    assert caught.value.message == (
        "--reward-load is missing: score.source dense_only needs a reward model, such as a run of "
        "alignctl reward; score.source=sparse_only scores by the rules that rows name, without one"
        "; looked for runs/tiny-llama-reward: `alignctl reward --preset tiny-llama` writes there"
    )
    assert caught.value.hint == "alignctl rlhf --help"
    require_inputs(on_policy("score.source=sparse_only", "value.load=/"))
    require_inputs(on_policy(reward_load=Path("/")))


def test_a_name_on_the_hub_is_left_to_who_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = config(load=tmp_path, data=Path("openai/gsm8k:main"))
    require_inputs(found)
    assert missing_inputs(found) == [
        "openai/gsm8k:main: not found here, so it would be fetched from the Hugging Face hub "
        "first, into runs/.cache/hub"
    ]
    (tmp_path / "openai").mkdir()
    with pytest.raises(UserError, match="--data openai/gsm8k:main does not exist"):
        require_inputs(found)


def test_a_word_is_no_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        require_inputs(config(load=tmp_path, data=Path("squad")))
    assert caught.value.message == (
        "--data squad does not exist; a data set on the Hugging Face hub is named ORG/NAME"
    )


def test_indexed_datasets_are_never_names_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = {"output": "runs/x", "data.train": Path("some/wiki")}
    found = resolve(PretrainConfig, "tiny-llama", flags)
    assert [each for each in load_stage("pretrain").inputs if each.hub_names(found)] == []
