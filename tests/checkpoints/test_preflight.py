"""The checks of models and checkpoints are tested with whole commands, in tests/stages."""

import sys
from pathlib import Path

import pytest

from alignctl.checkpoints.manifest import NAME, Manifest
from alignctl.checkpoints.preflight import check_devices, check_engine, check_resumable
from alignctl.config.on_policy_run import RLHFConfig
from alignctl.config.presets.load import resolve
from alignctl.config.run import SFTConfig
from alignctl.errors import UserError
from alignctl.run_folder import LATEST, RunFolder


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


def write_checkpoint(folder: RunFolder, config: RLHFConfig, **layout: int) -> None:
    """All that is looked at of a checkpoint of step 3."""
    checkpoint = folder.checkpoints / "iter_0000003"
    checkpoint.mkdir(parents=True)
    (folder.checkpoints / LATEST).write_text("3")
    found = Manifest(
        iteration=3,
        model=config.model,
        dtype="float32",
        padded_vocab_size=512,
        hf_prefix="",
        training=config.training_layout | layout,
    )
    (checkpoint / NAME).write_text(found.model_dump_json())


def test_a_value_model_is_to_go_on_at_its_layout_before_any_rank_starts(tmp_path: Path) -> None:
    """Policy and value model at TP 1 x DP 2; then TP 2 is asked for, or its folder is lost."""
    flags = {"output": tmp_path, "launch.nproc_per_node": 2, "parallel.tp": 1, "parallel.pp": 1}
    config = resolve(RLHFConfig, "tiny-llama", flags)
    folder = RunFolder(tmp_path)
    check_resumable(config, folder)  # nothing is there to go on from
    write_checkpoint(folder, config)
    with pytest.raises(UserError, match=r"value/checkpoints/iter_0000003: the value model that"):
        check_resumable(config, folder)
    write_checkpoint(folder.value, config)
    check_resumable(config, folder)
    moved = resolve(RLHFConfig, "tiny-llama", flags | {"roles.value.parallel.tp": 2})
    with pytest.raises(UserError) as caught:
        check_resumable(moved, folder)
    assert "value/checkpoints/iter_0000003 was saved at another layout: tp=1 -> 2, dp=2 -> 1" in (
        caught.value.message
    )
    assert (caught.value.hint or "").startswith("give the same layout (roles.value.parallel), or")
    check_resumable(
        resolve(RLHFConfig, "tiny-llama", flags | {"roles.reward.parallel.tp": 2}), folder
    )


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
