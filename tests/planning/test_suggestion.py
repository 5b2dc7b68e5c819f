from pathlib import Path

import pytest

from alignctl.config.on_policy_run import is_on_policy
from alignctl.config.presets.load import STAGES, load_preset, resolve
from alignctl.config.sections import Model
from alignctl.planning.devices import device
from alignctl.planning.layouts import fitting, look_at
from alignctl.planning.suggestion import Machine, suggest

GPU = device("h100")
MODELS = ("llama2-70b", "bloom-7b", "llama3-8b", "mistral-7b", "qwen2.5-7b", "qwen3-0.6b")


def written(model: Model, machine: Machine, folder: Path) -> tuple[str, list[str]]:
    text, missing = suggest(model, machine, "models/mine")
    file = folder / "mine.yaml"
    file.write_text(text, encoding="ascii")
    return str(file), missing


@pytest.mark.parametrize("name", MODELS)
def test_what_is_suggested_is_a_preset_of_that_model_and_every_stage_fits(
    name: str, tmp_path: Path
) -> None:
    model = load_preset(name).model
    file, missing = written(model, Machine(32, "h100", GPU, 80), tmp_path)
    preset = load_preset(file)
    assert preset.model == model
    assert len(missing) < len(STAGES)
    for section, config_class in STAGES.items():
        assert (getattr(preset, section) is None) == (section in missing)
        if section not in missing:
            config = resolve(config_class, file, {"output": Path("runs")})
            assert config.world_size == 32
            assert look_at(config, GPU, 80).report.fits


def test_a_suggested_layout_is_the_fastest_of_plan(tmp_path: Path) -> None:
    file, _ = written(load_preset("qwen3-0.6b").model, Machine(8, "h100", GPU, 80), tmp_path)
    config = resolve(STAGES["sft"], file, {"output": Path("runs")})
    best = fitting(config, GPU, gpus=8, gpu_memory_gib=80)[0]
    assert look_at(config, GPU, 80).row() == best.row()


def test_a_model_of_few_positions_is_not_asked_for_more(tmp_path: Path) -> None:
    """The recipe of Qwen 3 has sequences of 4,096 tokens, the tiny model 256 positions."""
    model = load_preset("tiny-qwen3").model
    assert model.max_position_embeddings == 256
    file, missing = written(model, Machine(1, "h100", GPU, 80), tmp_path)
    assert missing == []
    for config_class in STAGES.values():
        config = resolve(config_class, file, {"output": Path("runs")})
        assert config.batch.seq_length == 256
    grpo = resolve(STAGES["grpo"], file, {"output": Path("runs")})
    assert is_on_policy(grpo)
    assert grpo.data.max_prompt_length + grpo.rollout.max_new_tokens == 256


def test_without_a_gpu_each_process_has_the_model(tmp_path: Path) -> None:
    model = load_preset("tiny-bloom").model
    file, missing = written(model, Machine(2), tmp_path)
    assert missing == []
    sft = resolve(STAGES["sft"], file, {"output": Path("runs")})
    assert (sft.precision, sft.data_parallel_size, sft.world_size) == ("fp32", 2, 2)
    assert (sft.train.steps, sft.train.epochs) == (None, 2)


def test_a_stage_that_does_not_fit_is_left_out_and_said(tmp_path: Path) -> None:
    """Thirteen billion weights on one GPU: 18 bytes each in training, less where most waits."""
    text, missing = suggest(load_preset("llama2-13b").model, Machine(1, "h100", GPU, 80), "here")
    assert "sft" in missing
    assert "# sft: no layout fits" in text
    assert "\nsft: null\n" in text
