"""Runs in float16, as a user starts them; what the engines compute: tests/parallel."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from alignctl.run_folder import RunFolder
from tests import commands
from tests.e2e.test_resume import rows
from tests.stages.conftest import Alignctl, refused

pytestmark = pytest.mark.slow

SCALE = ("precision=fp16", "loss_scale.initial=2097152", "loss_scale.hysteresis=1")


def command(workspace: Path, output: Path, *overrides: str) -> list[object]:
    inputs = {"--preset": "tiny.yaml", "--load": "hf", "--data": "train.jsonl"}
    words = [word for flag, name in inputs.items() for word in (flag, workspace / name)]
    return ["sft", *words, "--output", output, *overrides]


@pytest.mark.parametrize(
    "layout",
    [
        ("parallel.tp=2", "parallel.sequence_parallel=true"),
        ("parallel.pp=2",),
        ("engine=deepspeed", "deepspeed.zero_stage=3"),
    ],
)
def test_steps_that_overflow_are_counted_and_the_rest_learns(
    layout: tuple[str, ...], workspace: Path, tmp_path: Path, alignctl: Alignctl
) -> None:
    """As in Megatron-LM: a step that is left out counts, but the learning rate waits.

    With a hysteresis of 1 each of them halves the scale. The warm-up begins with 0, then 0.005.
    """
    run = tmp_path / "run"
    outcome = commands.alignctl(*command(workspace, run, *SCALE, *layout, "train.steps=24"))
    assert outcome.code == 0, outcome.text
    found = rows(RunFolder(run), "train")
    assert [row["step"] for row in found] == list(range(1, 25))
    count, rates = 0, []
    for row in found:
        count += "grad_norm" not in row
        assert (row["loss_scale"], row["skipped_steps"]) == (2097152 / 2**count, count)
        rates.append(row["lr"])
        if "grad_norm" in row:
            assert set(rates) == {row["lr"]}
            rates.clear()
    assert 3 <= count <= 12
    taken = [row for row in found if "grad_norm" in row]
    assert [row["lr"] for row in taken[:2]] == [0.0, 0.005]
    assert taken[-1]["loss"] < 0.9 * taken[0]["loss"]
    assert f"skipped {count}" in outcome.err
    folder = run / "checkpoints/iter_0000024"  # of DeepSpeed it is a Hugging Face folder
    if "engine=deepspeed" not in layout:
        folder = tmp_path / "hf"
        converted = alignctl("convert-mg2hf", "--load", run, "--save", folder)
        assert converted.code == 0, converted.text
    weights = load_file(folder / "model.safetensors")
    assert {str(each.dtype) for each in weights.values()} == {"torch.float16"}


def test_a_gradient_that_no_scale_makes_fit_ends_the_run(workspace: Path, tmp_path: Path) -> None:
    scale = ("precision=fp16", "loss_scale.initial=2097152", "loss_scale.minimum=1048576")
    outcome = commands.alignctl(*command(workspace, tmp_path / "run", *scale))
    said = refused(outcome, code=1)
    assert "step 3: the gradient is not finite in float16 at the smallest loss scale, " in said
    assert "rows of the batch: " in said
