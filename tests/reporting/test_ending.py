import re
import time
from pathlib import Path

import pytest

from alignctl import console
from alignctl.config.presets.load import STAGES, resolve
from alignctl.reporting.progress import alive, bytes, run
from alignctl.reporting.progress.ending import finishing
from alignctl.stages.shared.ending import next_command
from alignctl.stages.shared.stage import load_stage


def test_a_command_ends_with_what_how_long_where_and_the_next_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with finishing("report", "written", Path("report.html"), "xdg-open report.html"):
        pass
    assert capsys.readouterr().err.splitlines() == [
        "report: written in 0:00:00: report.html",
        "next: xdg-open report.html",
    ]


def test_a_command_that_fails_does_not_say_that_it_is_done(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(OSError, match="disk"), finishing("report", "written", Path("x"), "y"):
        raise OSError("disk")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("pretrain", "sft --preset tiny-llama --load runs/here"),
        ("sft", "reward --preset tiny-llama --load runs/here"),
        ("reward", "rlhf --preset tiny-llama --load 'my sft' --reward-load runs/here"),
        ("dpo", "convert-mg2hf --load runs/here --save models/here"),
        ("grpo", "convert-mg2hf --load runs/here --save models/here"),
    ],
)
def test_the_next_command_can_be_typed_as_it_is_said(stage: str, words: str) -> None:
    flags = {"output": Path("runs/here"), "load": Path("my sft")}
    config = resolve(STAGES[stage], "tiny-llama", flags, [])
    assert next_command(load_stage(stage), config) == f"alignctl {words}"


def test_a_preset_that_is_no_file_is_left_out_of_the_next_command() -> None:
    flags = {"output": Path("runs/here"), "load": Path("model")}
    config = resolve(STAGES["sft"], "tiny-llama", flags, [])
    made = config.model_copy(update={"preset": "made-for-it.yaml"})
    assert next_command(load_stage("sft"), made) == "alignctl reward --load runs/here"


def test_what_deepspeed_has_trained_need_not_be_converted() -> None:
    words = ["engine=deepspeed", "parallel.tp=1"]
    flags = {"output": Path("runs/here"), "load": Path("sft")}
    config = resolve(STAGES["dpo"], "tiny-llama", flags, words)
    assert next_command(load_stage("dpo"), config) == (
        "alignctl generate --load runs/here --data PROMPTS --output answers/here.jsonl"
    )


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (12_345, "12.35 KB"), (1_500_000, "1.500 MB"), (5e12, "5.000 TB")],
)
def test_sizes_are_told_in_a_unit_that_fits_them(number: float, text: str) -> None:
    assert bytes.size(number) == text


def test_signs_of_life_are_given_while_nothing_else_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alive, "STILL_SECONDS", 0.1)
    console.note_sign()
    with alive.alive("thinking"):
        time.sleep(0.5)
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(re.fullmatch(r"thinking: \d s so far", line) for line in lines)


def test_a_log_is_told_that_processes_are_still_starting(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "STILL_SECONDS", 0.0)
    with run.display() as shown:
        shown.breathe()
    assert capsys.readouterr().err == "starting the processes: 0 s since the start\n"


def test_a_log_that_has_its_first_steps_stays_still_for_no_longer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with run.display() as shown:
        for step in (1, 2):
            shown.show({"kind": "train", "step": step, "time": float(step), "loss": 1.0})
        shown.breathe()
        monkeypatch.setattr(run, "still_seconds", lambda: alive.STILL_SECONDS)
        shown.breathe()
    assert alive.STILL_SECONDS < 10
    assert capsys.readouterr().err.splitlines()[2:] == ["after step 2: 0 s since the start"]
