"""The knobs of float16, and the rules between them."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from alignctl.config.generation import GenerateOptions, HarnessOptions, PairOptions
from alignctl.config.precision import LossScale, Precision, bytes_of_number
from alignctl.config.presets.load import STAGES, resolve
from alignctl.errors import UserError
from alignctl.planning.job import predict
from tests import tiny


@pytest.fixture
def preset(tmp_path: Path) -> str:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny.on_policy_preset() | tiny.preset()), encoding="utf-8")
    return str(file)


def test_the_loss_scale_starts_and_moves_as_megatrons() -> None:
    """The defaults of Megatron-LM's arguments of these names."""
    from megatron.core.optimizer import OptimizerConfig

    theirs, ours = OptimizerConfig(), LossScale()
    assert (ours.initial, ours.minimum) == (theirs.initial_loss_scale, theirs.min_loss_scale)
    assert (ours.growth_interval, ours.hysteresis) == (theirs.loss_scale_window, theirs.hysteresis)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_takes_fp16(stage: str, preset: str) -> None:
    overrides = ["precision=fp16", "loss_scale.initial=65536", "loss_scale.growth_interval=100"]
    config = resolve(STAGES[stage], preset, {"output": Path("runs/x")}, overrides)
    assert (config.precision, config.loss_scale.initial) == ("fp16", 65536)


@pytest.mark.parametrize("section", [GenerateOptions, PairOptions, HarnessOptions])
def test_whatever_asks_a_model_takes_fp16(section: type[BaseModel]) -> None:
    taken: Any = section.model_fields["precision"].annotation
    assert taken == Precision | None


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (
            ["loss_scale.initial=1024"],
            "loss_scale.initial 1024 has no effect with precision fp32: only float16 needs a loss "
            "scale; leave it out, or set precision=fp16",
        ),
        (
            ["precision=fp16", "loss_scale.initial=2", "loss_scale.minimum=4"],
            "loss_scale.minimum 4 exceeds loss_scale.initial 2",
        ),
        (["loss_scale.hysteresis=0"], "loss_scale.hysteresis must be at least 1; found 0"),
        (["loss_scale.initial=0"], "loss_scale.initial must be greater than 0; found 0"),
    ],
)
def test_what_makes_no_sense_is_refused(overrides: list[str], rule: str, preset: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(STAGES["sft"], preset, {"output": Path("runs/x")}, overrides)
    assert rule in caught.value.message


def test_fp16_takes_as_many_bytes_as_bf16() -> None:
    assert [bytes_of_number(each) for each in ("fp32", "bf16", "fp16")] == [4, 2, 2]
    for stage in ("sft", "rlhf"):
        ours, theirs = (
            predict(
                resolve(STAGES[stage], "llama2-7b", {"output": Path("x")}, [f"precision={name}"])
            )
            for name in ("fp16", "bf16")
        )
        assert ours.ranks == theirs.ranks
        assert ours.sampler == theirs.sampler
