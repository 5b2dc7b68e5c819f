"""The checks of models and checkpoints are tested with whole commands, in tests/stages."""

import sys
from pathlib import Path

import pytest

from alignctl.checkpoints.preflight import check_devices, check_engine
from alignctl.config.presets.load import resolve
from alignctl.config.run import SFTConfig
from alignctl.errors import UserError


def test_every_process_needs_a_gpu_of_its_own_where_there_are_any() -> None:
    config = resolve(SFTConfig, "tiny-llama", {"output": Path("run"), "launch.nproc_per_node": 2})
    check_devices(config, 0)
    check_devices(config, 2)
    with pytest.raises(UserError, match="nproc_per_node 2: only 1 GPUs can be seen") as caught:
        check_devices(config, 1)
    assert caught.value.hint is not None
    assert "--nproc 1" in caught.value.hint


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("deepspeed", "engine deepspeed: DeepSpeed is not installed"),
        ("peft", "lora with engine deepspeed: PEFT is not installed"),
    ],
)
def test_a_library_that_is_to_train_has_to_be_there(
    missing: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = {"output": Path("run"), "engine": "deepspeed", "parallel.tp": 1}
    config = resolve(SFTConfig, "tiny-llama", overrides | {"lora.rank": 4})
    check_engine(config)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=said):
        check_engine(config)
    if missing == "peft":
        check_engine(resolve(SFTConfig, "tiny-llama", overrides))


@pytest.mark.parametrize(
    ("attention", "said"),
    [
        ("transformer_engine", r"kernels\.attention transformer_engine: it is not installed"),
        ("flex", r"kernels\.attention flex: it learns on a GPU alone, and none can be seen here"),
    ],
)
def test_the_attention_that_is_asked_for_has_to_run_here(attention: str, said: str) -> None:
    overrides = {"output": Path("run"), "kernels.attention": attention}
    config = resolve(SFTConfig, "tiny-llama", overrides)
    with pytest.raises(UserError, match=said):
        check_devices(config, 0)
