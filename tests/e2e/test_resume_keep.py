"""Runs that were stopped go on beyond what `checkpoint.keep` has removed: every stage, twice.

Each attempt is resumed from a checkpoint that its own later saves remove, and the model and the
tokenizer that the run was started from are gone by then.
"""

import shutil
from pathlib import Path

import pytest

from alignctl.run_folder import RunFolder
from tests import commands, tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 9


def steps_of_attempt(run: RunFolder, arguments: list[object], until: int) -> commands.Outcome:
    """An attempt that is asked to stop once it has taken so many steps."""
    process = commands.start(*arguments)
    if until < STEPS:
        # The stop file of the run itself: ranks see it before the step after.
        commands.wait_until(lambda: run.latest_step() >= until, process)
        run.stop_file.touch()
    return commands.finish(process)


CASES = [
    *((stage, "megatron") for stage in ("sft", "reward", "dpo", "pretrain")),
    *((stage, "deepspeed") for stage in ("sft", "reward", "dpo")),
]


@pytest.mark.parametrize(("stage", "engine"), CASES)
def test_a_run_outlives_the_checkpoints_it_was_resumed_from(
    tmp_path: Path, stage: str, engine: str
) -> None:
    model = tiny.write_model(tmp_path / "hf")
    tokenizer = tiny.write_tokenizer(tmp_path / "tokenizer")
    settings = tiny.preset()[stage] | {
        "train": {"steps": STEPS, "eval_interval": 100},
        "checkpoint": {"save_interval": 1, "keep": 1},
    }
    if stage == "pretrain":
        data: list[object] = ["--data", tiny.write_corpus(tmp_path / "corpus")]
        settings["batch"] = {"micro_batch_size": 2, "global_batch_size": 8, "seq_length": 32}
    else:
        write = tiny.write_rows if stage == "sft" else tiny.write_pairs
        data = ["--data", write(tmp_path / "data.jsonl"), f"engine={engine}"]
    tiny.write_preset(tmp_path / "tiny.yaml", **{stage: settings})
    run = RunFolder(tmp_path / "run")
    flags = ["--preset", tmp_path / "tiny.yaml", "--load", model, "--tokenizer", tokenizer]
    arguments = [stage, *flags, *data, "--output", run.path]

    first = steps_of_attempt(run, arguments, until=1)
    assert first.code == 0, first.text
    shutil.rmtree(model)
    shutil.rmtree(tokenizer)
    for until in (4, STEPS):
        before = run.latest_step()
        again = steps_of_attempt(run, arguments, until)
        assert again.code == 0, again.text
        assert f"resuming {run.path} at step {before}" in again.err
        assert run.latest_step() > before + 1, "nothing was removed"
    (last,) = run.checkpoints.glob("iter_*")
    assert last.name == f"iter_{STEPS:07d}"
    folder = last if engine == "deepspeed" else last / "hf"
    assert (folder / "config.json").is_file()
    assert (folder / "tokenizer.json").is_file()


def test_a_run_goes_on_from_the_checkpoint_of_another_that_went_on_too(tmp_path: Path) -> None:
    """Adapters on the first checkpoint of a run with keep=1, which then takes three more steps."""
    model = tiny.write_model(tmp_path / "hf")
    rows = tiny.write_rows(tmp_path / "rows.jsonl")
    settings = tiny.preset()["sft"] | {
        "train": {"steps": STEPS, "eval_interval": 100},
        "checkpoint": {"save_interval": 1, "keep": 1},
    }
    preset = tiny.write_preset(tmp_path / "tiny.yaml", sft=settings)

    def command(load: Path, name: str, *knobs: object) -> list[object]:
        flags = ["--preset", preset, "--load", load, "--data", rows]
        return ["sft", *flags, "--output", tmp_path / name, *knobs]

    whole, adapted = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "adapted")
    started = steps_of_attempt(whole, command(model, "whole"), until=1)
    assert started.code == 0, started.text
    base = whole.latest_checkpoint()
    assert base is not None
    arguments = command(whole.path, "adapted", "lora.rank=4")
    stopped = steps_of_attempt(adapted, arguments, until=2)
    assert stopped.code == 0, stopped.text
    finished = commands.alignctl(*command(model, "whole"))
    assert finished.code == 0, finished.text
    assert base.is_dir()
    resumed = commands.alignctl(*arguments)
    assert resumed.code == 0, resumed.text
    assert f"merged into {base}" in resumed.err
    assert adapted.latest_step() == STEPS
