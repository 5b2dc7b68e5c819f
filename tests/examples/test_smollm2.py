"""The preset of docs/hh.md, beside the model that it is for."""

from pathlib import Path

from alignctl.config.load import resolve
from alignctl.config.run import RewardConfig
from tests.test_presets import count

PRESET = Path(__file__).parents[2] / "examples" / "smollm2-135m.yaml"


def test_the_preset_of_smollm2_has_its_number_of_parameters() -> None:
    """134.5 million, as its card says; the output layer is the embedding."""
    config = resolve(RewardConfig, str(PRESET), {"output": Path("run")})
    assert count(config.model) == 134_515_008
    assert config.data_parallel_size == 2
