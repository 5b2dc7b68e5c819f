import json
import shlex
import sys
from pathlib import Path

import pytest

from alignctl import cli
from alignctl.cli.plan import GPUS
from alignctl.config.presets.load import STAGES, resolve
from alignctl.planning.devices import device, devices
from alignctl.planning.layouts import fitting, look_at


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


@pytest.mark.parametrize("stage", ["sft", "rlhf"])
def test_the_overrides_make_the_layout_that_was_planned(stage: str) -> None:
    """Pasted behind the preset they give its memory and its time."""
    config = resolve(STAGES[stage], "llama2-7b", {"output": Path("runs")})
    gpu = device("h100")
    plans = fitting(config, gpu, gpus=8, gpu_memory_gib=80)
    assert [plan.cost.seconds for plan in plans] == sorted(plan.cost.seconds for plan in plans)
    for plan in plans[:3]:
        pasted = resolve(STAGES[stage], "llama2-7b", {"output": Path("runs")}, plan.overrides)
        assert pasted.world_size == 8
        assert look_at(pasted, gpu, 80).row() == plan.row()


def test_all_that_is_listed_fits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("alignctl plan --preset llama2-70b --gpus 32 --json", monkeypatch) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows
    assert all(row["fits"] and row["peak_gib"] <= 76 for row in rows)
    assert all(row["tp"] * row["pp"] * row["dp"] == 32 for row in rows)


def test_the_best_is_marked_and_can_be_pasted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("alignctl plan --preset llama2-7b --gpus 8", monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("*") for line in lines) == 1
    assert lines[0].startswith("llama2-7b sft on 8 x a100-80g with 80 GiB: the layouts that fit")
    assert sum(line.startswith("=") for line in lines[:-3]) == 1
    assert lines[-1].startswith("best: launch.nproc_per_node=8 ")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("--preset llama2-70b --gpus 8", "no layout of llama2-70b sft fits onto 8 x a100-80g"),
        (
            "--preset bloom-7b --stage rlhf roles.reward.parallel.tp=1 roles.reward.parallel.pp=4",
            "the reward model is supposed to be as large as the policy, and cannot be cut as "
            "roles.reward.parallel says: model.num_layers 30 is not divisible by",
        ),
        ("--preset llama2-7b --gpu b300", "--gpu b300: unknown; known are a100-80g, a800"),
        ("--preset llama2-7b --gpus 8 parallel.tq=2", "did you mean 'parallel.tp'?"),
    ],
)
def test_what_cannot_be_planned_is_said(
    command: str,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(f"alignctl plan {command}", monkeypatch) == 2
    assert expected in capsys.readouterr().err


def test_the_help_names_the_gpus_that_are_known() -> None:
    assert set(GPUS.replace(" or ", ", ").split(", ")) == set(devices())
