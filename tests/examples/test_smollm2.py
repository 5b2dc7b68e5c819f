"""The preset of docs/hh.md, beside the model that it is for."""

import math
from pathlib import Path

from alignctl.config.presets.load import resolve
from alignctl.config.run import RewardConfig
from alignctl.models.families import weight_map
from alignctl.models.weight_map import hf_shapes

PRESET = Path(__file__).parents[2] / "examples" / "smollm2-135m.yaml"


def test_the_preset_of_smollm2_has_its_number_of_parameters() -> None:
    """134.5 million, as its card says; the output layer is the embedding."""
    config = resolve(RewardConfig, str(PRESET), {"output": Path("run")})
    shapes = hf_shapes(weight_map(config.model), config.model).values()
    assert sum(math.prod(shape) for shape in shapes) == 134_515_008
    assert config.data_parallel_size == 2
