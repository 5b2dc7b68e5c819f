"""Reward models, DPO and adapters that were stopped are what nobody touched: bit for bit."""

import signal
from pathlib import Path

import pytest

from alignctl.run_folder import RunFolder
from tests import commands, tiny
from tests.e2e.test_resume import STEPS, assert_same, steps_done

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FLOAT16 = ("precision=fp16", "loss_scale.initial=1048576", "loss_scale.growth_interval=3")


@pytest.mark.parametrize(
    ("stage", "layout"),
    [
        ("reward", ("parallel.tp=2", "parallel.sequence_parallel=true")),
        ("reward", ("parallel.distributed_optimizer=true",)),
        ("dpo", ("parallel.pp=2",)),
        ("reward", ("parallel.tp=2", "parallel.sequence_parallel=true", "lora.rank=4")),
        ("dpo", ("parallel.distributed_optimizer=true", "precision=bf16", "lora.rank=4")),
        ("sft", ("parallel.pp=2", "lora.rank=4")),
        ("sft", ("parallel.tp=2", "lora.rank=4", "lora.dropout=0.1")),
        ("sft", ("engine=deepspeed", "lora.rank=4", "lora.dropout=0.1")),
        ("sft", ("parallel.tp=2", *FLOAT16)),
        ("dpo", ("parallel.distributed_optimizer=true", *FLOAT16, "lora.rank=4")),
        ("reward", ("engine=deepspeed", *FLOAT16)),
    ],
)
def test_a_run_stopped_by_sigterm_goes_on_as_if_it_had_not_been(
    tmp_path: Path, stage: str, layout: tuple[str, ...]
) -> None:
    model = tiny.write_model(tmp_path / "hf")
    write = tiny.write_rows if stage == "sft" else tiny.write_pairs
    data = write(tmp_path / "data.jsonl")
    preset = tiny.preset()
    preset[stage] |= {"train": {"steps": STEPS, "eval_interval": 4}}
    tiny.write_preset(tmp_path / "tiny.yaml", **{stage: preset[stage]})
    flags = ("--preset", tmp_path / "tiny.yaml", "--load", model, "--data", data)
    whole, run = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "run")

    outcome = commands.alignctl(stage, *flags, "--output", whole.path, *layout)
    assert outcome.code == 0, outcome.text
    process = commands.start(stage, *flags, "--output", run.path, *layout)
    commands.wait_until(lambda: steps_done(run) >= 4, process)
    process.send_signal(signal.SIGTERM)
    outcome = commands.finish(process)
    assert outcome.code == 0, outcome.text
    assert 4 <= steps_done(run) < STEPS
    outcome = commands.alignctl(stage, *flags, "--output", run.path, *layout)
    assert outcome.code == 0, outcome.text
    assert f"resuming {run.path} at step " in outcome.err
    assert_same(run, whole)
