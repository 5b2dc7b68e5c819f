"""The chains of examples/*.sh: the tiny ones really run, the 7B ones say what they would do."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from alignctl import cli
from tests.commands import ALIGNCTL

EXAMPLES = Path(__file__).parents[2] / "examples"
CHAINS = {
    "bloom-rlhf": ["sft", "reward", "rlhf", "convert-mg2hf", "generate", "eval"],
    "llama2-dpo": ["sft", "dpo", "convert-mg2hf", "generate"],
    "llama2-online-dpo": ["sft", "reward", "online-dpo", "convert-mg2hf", "generate", "eval"],
    "grpo-math": ["sft", "grpo", "convert-mg2hf", "generate", "eval"],
}
"""Their commands, between convert-hf2mg and report."""
FEW = "train.steps=4 optimizer.warmup_steps=1 checkpoint.save_interval=1000"
"""Knobs of a chain that runs and learns nothing; rlhf first trains the value model, 3 episodes."""


def start(chain: str, path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a script with the programs of a folder in front of the others."""
    environment = os.environ | {"PATH": f"{path}{os.pathsep}{os.environ['PATH']}"} | variables
    return subprocess.run(
        ["bash", str(EXAMPLES / f"{chain}.sh")],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        env=environment,
    )


def write_program(file: Path, command: str) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"#!/usr/bin/env bash\n{command}\n")
    file.chmod(0o755)


@pytest.mark.parametrize("chain", CHAINS)
def test_every_command_of_the_large_chain_is_accepted(
    chain: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A program in alignctl's place notes what it is asked; then alignctl is asked, dry."""
    log = tmp_path / "commands"
    write_program(tmp_path / "bin" / "alignctl", f"printf '%q ' \"$@\" >> {log}; echo >> {log}")
    knobs = {"SIZE": "7b", "KNOBS": "train.steps=7", "OUT": str(tmp_path), "REWARD": "runs/reward"}
    done = start(chain, tmp_path / "bin", **knobs)
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line) for line in log.read_text().splitlines()]
    assert [command[0] for command in commands] == ["convert-hf2mg", *CHAINS[chain], "report"]
    for command in commands[:-1]:
        if command[0] == "eval":  # has no dry run
            continue
        monkeypatch.setattr(sys, "argv", ["alignctl", *command, "--dry-run"])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert not caught.value.code, capsys.readouterr().err


def test_another_size_is_refused() -> None:
    done = start("llama2-dpo", Path(ALIGNCTL).parent, SIZE="70b")
    assert (done.returncode, done.stderr) == (2, "error: SIZE is tiny or 7b, not 70b\n")


@pytest.mark.slow
@pytest.mark.parametrize("chain", CHAINS)
def test_the_tiny_chain_runs_and_once_more_has_nothing_to_do(chain: str, tmp_path: Path) -> None:
    environment = {"OUT": str(tmp_path / "out"), "KNOBS": FEW}
    for _ in range(2):
        done = start(chain, Path(ALIGNCTL).parent, **environment)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "hf" / "model.safetensors").is_file()
    assert (tmp_path / "out" / "report.html").is_file()
    trained = set(CHAINS[chain]) - {"convert-mg2hf", "generate", "eval"}
    assert done.stderr.count("holds this run already, finished") == len(trained)
