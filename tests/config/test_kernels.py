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
