"""What the knobs of kernels refuse."""

from pathlib import Path

import pytest

from alignctl.config.presets.load import resolve
from alignctl.config.run import SFTConfig
from alignctl.errors import UserError


@pytest.mark.parametrize(
    ("preset", "overrides", "rule"),
    [
        (
            "tiny-llama",
            ["engine=deepspeed", "parallel.tp=1", "kernels.attention=plain"],
            "kernels.attention plain has no effect with engine deepspeed, which trains "
            "transformers' layers; leave it out",
        ),
        (
            "tiny-llama",
            ["engine=deepspeed", "parallel.tp=1", "kernels.activation=fused"],
            "kernels.activation fused has no effect with engine deepspeed",
        ),
        (
            "tiny-llama",
            ["kernels.attention=flex", "model.attention_dropout=0.1"],
            "kernels.attention flex: it drops no attention weights, and model.attention_dropout "
            "is 0.1; take plain",
        ),
        (
            "tiny-bloom",
            ["kernels.attention=flex"],
            "kernels.attention flex: the model's heads are 8 wide, and it needs 16 or more; take "
            "plain",
        ),
        (
            "tiny-bloom",
            ["kernels.attention=transformer_engine"],
            "kernels.attention transformer_engine: it knows no ALiBi, which bloom needs",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(preset: str, overrides: list[str], rule: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(SFTConfig, preset, {"output": Path("runs/x")}, overrides)
    assert rule in caught.value.message


@pytest.mark.parametrize(
    ("preset", "overrides", "is_gpu", "has_te", "chosen"),
    [
        ("llama2-7b", [], False, True, "plain"),
        ("llama2-7b", [], True, True, "transformer_engine"),
        ("llama2-7b", [], True, False, "flex"),
        ("bloom-7b", [], True, True, "flex"),
        ("bloom-7b", ["model.attention_dropout=0.1"], True, False, "plain"),
        ("tiny-bloom", [], True, False, "plain"),
        ("llama2-7b", ["kernels.attention=plain"], True, True, "plain"),
        ("llama2-7b", ["kernels.attention=flex"], True, True, "flex"),
    ],
)
def test_what_a_machine_has_decides(
    preset: str, overrides: list[str], is_gpu: bool, has_te: bool, chosen: str
) -> None:
    """Bloom's ALiBi is unknown to Transformer Engine; tiny-bloom's heads are 8 wide."""
    config = resolve(SFTConfig, preset, {"output": Path("runs/x")}, overrides)
    found = config.kernels.choose(config.model, is_gpu=is_gpu, has_transformer_engine=has_te)
    assert found == chosen


@pytest.mark.parametrize(
    ("overrides", "is_gpu", "chosen"),
    [
        ([], False, "plain"),
        ([], True, "fused"),
        (["kernels.activation=plain"], True, "plain"),
        (["kernels.activation=fused"], False, "fused"),
    ],
)
def test_activations_are_fused_on_a_gpu(overrides: list[str], is_gpu: bool, chosen: str) -> None:
    config = resolve(SFTConfig, "tiny-llama", {"output": Path("runs/x")}, overrides)
    assert config.kernels.choose_activation(is_gpu=is_gpu) == chosen
