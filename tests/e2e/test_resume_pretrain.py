"""Pretraining that was stopped is what nobody touched, bit for bit: also over a blend's passes."""

import signal
from pathlib import Path

import pytest

from alignctl.run_folder import RunFolder
from tests import commands, tiny
from tests.e2e.test_resume import STEPS, assert_same, steps_done
from tests.stages.conftest import refused

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    "knobs",
    [
        ("parallel.tp=2", "parallel.sequence_parallel=true", "extra_vocab_size=5"),
        ("parallel.distributed_optimizer=true", "data.cross_document_attention=false"),
    ],
)
def test_a_run_stopped_by_sigterm_goes_on_as_if_it_had_not_been(
    tmp_path: Path, knobs: tuple[str, ...]
) -> None:
    """20 steps of 8 x 32 tokens are 5,120; of the smaller dataset that is some seven passes."""
    model = tiny.write_model(tmp_path / "hf")
    large = tiny.write_corpus(tmp_path / "large")
    small = tiny.write_corpus(tmp_path / "small", [[5, 6, 7, 8, 9, 10, 11, 12, 13, 2]] * 40)
    preset = tiny.preset()
    preset["pretrain"] |= {
        "batch": {"micro_batch_size": 2, "global_batch_size": 8, "seq_length": 32},
        "train": {"steps": STEPS, "eval_interval": 4},
    }
    tiny.write_preset(tmp_path / "tiny.yaml", pretrain=preset["pretrain"])
    blend = f"data.blend={{{large}: 0.5, {small}: 0.5}}"
    flags = ("pretrain", "--preset", tmp_path / "tiny.yaml", "--load", model, blend, *knobs)
    whole, run = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "run")

    outcome = commands.alignctl(*flags, "--output", whole.path)
    assert outcome.code == 0, outcome.text
    process = commands.start(*flags, "--output", run.path)
    commands.wait_until(lambda: steps_done(run) >= 4, process)
    process.send_signal(signal.SIGTERM)
    outcome = commands.finish(process)
    assert outcome.code == 0, outcome.text
    assert 4 <= steps_done(run) < STEPS
    kept = small.with_suffix(".idx").read_bytes(), small.with_suffix(".bin").read_bytes()
    tiny.write_corpus(small, [[5, 6, 2]] * 40)
    outcome = commands.alignctl(*flags, "--output", run.path)
    assert "the datasets or the tokenizer have changed since this run" in refused(outcome)

    small.with_suffix(".idx").write_bytes(kept[0])
    small.with_suffix(".bin").write_bytes(kept[1])
    outcome = commands.alignctl(*flags, "--output", run.path)
    assert outcome.code == 0, outcome.text
    assert f"resuming {run.path} at step " in outcome.err
    assert_same(run, whole)
