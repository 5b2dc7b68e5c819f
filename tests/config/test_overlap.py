"""What the knobs of overlapping traffic refuse."""

from pathlib import Path

import pytest

from alignctl.config.presets.load import resolve
from alignctl.config.run import SFTConfig
from alignctl.errors import UserError

GATHER = "parallel.overlap_param_gather=true"


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (
            [GATHER],
            "parallel.overlap_param_gather true needs parallel.distributed_optimizer true and "
            "parallel.overlap_grad_reduce true",
        ),
        (
            [GATHER, "parallel.distributed_optimizer=true"],
            "parallel.overlap_param_gather true needs parallel.overlap_grad_reduce true",
        ),
        (
            [
                GATHER,
                "parallel.distributed_optimizer=true",
                "parallel.overlap_grad_reduce=true",
                "lora.rank=4",
            ],
            "parallel.overlap_param_gather true has no place with lora",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(overrides: list[str], rule: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(SFTConfig, "tiny-llama", {"output": Path("runs/x")}, overrides)
    assert rule in caught.value.message
