"""What reaches a terminal, of names and contents of files that others made."""

import os
import pty
import subprocess
from pathlib import Path

import pytest

from alignctl import console
from tests.commands import ALIGNCTL, alignctl

HOSTILE = {
    "\x1b[31mred\x1b[0m": r"\x1b[31mred\x1b[0m",
    "title\x1b]0;x\x07": r"title\x1b]0;x\x07",
    "over\rwritten\x08": r"over\rwritten\x08",
    "c1 \x9b31m": r"c1 \x9b31m",
    "safe\u202etxt.exe\u2066": r"safe\u202etxt.exe\u2066",
    "two\u2028lines": r"two\u2028lines",
    "byte \udcff": r"byte \udcff",
}
USUAL = "línea 模型 مدل \u200c‌ 👩‍🔬 e\u0301\n\ttab \u3000wide"


@pytest.mark.parametrize(("text", "seen"), HOSTILE.items())
def test_what_a_terminal_would_obey_is_shown(text: str, seen: str) -> None:
    assert console.shown(text) == seen


def test_usual_text_stays_as_it_is() -> None:
    assert console.shown(USUAL) == USUAL


def test_every_way_of_saying_something_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J"
    console.say(evil)
    console.note_all([evil])
    console.explain(evil, evil, 2)
    console.report_bug(ValueError(evil))
    assert "\x1b" not in capsys.readouterr().err


def test_keys_files_and_values_of_a_command_line_are_escaped(tmp_path: Path) -> None:
    evil = "a\x1b[31m\u202eb"
    rows = tmp_path / f"{evil}.jsonl"
    rows.write_text('{"\\u001b[31m": 1}\n')
    preset = tmp_path / f"{evil}.yaml"
    preset.write_text('"\\e[31mkey": 1\n')
    where = ("--load", tmp_path / evil, "--data", rows)
    for words in (
        ("sft", "--preset", "tiny-llama", *where, f"{evil}=1"),
        ("sft", "--preset", "tiny-llama", *where, "train.steps=a\u202eb"),
        ("sft", "--preset", "tiny-llama", *where),
        ("sft", "--preset", "tiny-llama", f"--{evil}", "1"),
        ("presets", "validate", preset),
        ("prepare", "clean", rows, "--output", tmp_path / "out", "--key", evil),
    ):
        outcome = alignctl(*words)
        assert outcome.code == 2, outcome.text
        assert "error:" in outcome.err
        assert not {"\x1b", "\u202e"} & set(outcome.err), outcome.err


def test_data_is_escaped_for_a_terminal_and_left_alone_in_a_pipe(tmp_path: Path) -> None:
    preset = tmp_path / "\x1b[31m.yaml"
    words = [ALIGNCTL, "presets", "copy", "tiny-llama", str(preset)]
    subprocess.run(words, check=True, capture_output=True)
    words = [ALIGNCTL, "presets", "validate", str(preset)]
    piped = subprocess.run(words, check=True, capture_output=True).stdout
    assert piped == os.fsencode(f"{preset}: ok\n")
    terminal, inside = pty.openpty()
    subprocess.run(words, check=True, stdout=inside, stderr=subprocess.DEVNULL)
    os.close(inside)
    seen = os.read(terminal, 4096)
    os.close(terminal)
    assert rb"\x1b[31m.yaml: ok" in seen
    assert b"\x1b" not in seen
