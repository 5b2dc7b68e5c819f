"""A workspace with a tiny model, its data and preset, and commands that run in it."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from alignctl import cli
from tests import commands, tiny
from tests.commands import Outcome

Alignctl = Callable[..., Outcome]


@pytest.fixture(scope="package")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only by agreement: hf, bloom, train.jsonl, pairs.jsonl, tiny.yaml, bloom.yaml."""
    folder = tmp_path_factory.mktemp("workspace")
    tiny.write_model(folder / "hf")
    tiny.write_model(folder / "bloom", "bloom")
    tiny.write_rows(folder / "train.jsonl")
    tiny.write_pairs(folder / "pairs.jsonl")
    tiny.write_preset(folder / "tiny.yaml")
    tiny.write_preset(folder / "bloom.yaml", "bloom")
    return folder


@pytest.fixture(scope="package")
def finished_and_rival(workspace: Path) -> tuple[Path, Outcome]:
    """`run` in the workspace: four steps, checkpoints at 2 and 4; and a second launcher on it."""
    where = {"--load": "hf", "--data": "train.jsonl", "--output": "run"}
    flags = [word for flag, name in where.items() for word in (flag, workspace / name)]
    command = ("sft", "--preset", workspace / "tiny.yaml", *flags)
    process = commands.start(*command)
    commands.wait_until((workspace / "run/command.txt").exists, process)
    rival = commands.alignctl(*command)
    outcome = commands.finish(process)
    assert outcome.code == 0, outcome.text
    return workspace / "run", rival


@pytest.fixture(scope="package")
def finished(finished_and_rival: tuple[Path, Outcome]) -> Path:
    """A finished run."""
    return finished_and_rival[0]


@pytest.fixture(scope="package")
def rewarded(workspace: Path) -> Path:
    """A finished run of `reward` in the workspace."""
    where = {"--load": "hf", "--data": "pairs.jsonl", "--output": "rewarded"}
    flags = [word for flag, name in where.items() for word in (flag, workspace / name)]
    outcome = commands.alignctl("reward", "--preset", workspace / "tiny.yaml", *flags)
    assert outcome.code == 0, outcome.text
    return workspace / "rewarded"


@pytest.fixture
def alignctl(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Alignctl:
    """Runs a command in this process, which has imported torch already, in the workspace."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.chdir(workspace)
        monkeypatch.setattr(sys, "argv", ["alignctl", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        code = caught.value.code or 0
        assert isinstance(code, int)
        return Outcome(code, *capsys.readouterr())

    return run


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below a folder but locks, with size and time of change."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
        if not path.is_dir() and path.suffix != ".lock"
    }


def refused(outcome: Outcome, *, code: int = 2) -> str:
    """What was said about one mistake: `error:` once, perhaps with a hint, and no traceback."""
    assert outcome.code == code, outcome.text
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert outcome.err.count("error: ") == 1
    return outcome.err[outcome.err.index("error: ") :]
