import json
import subprocess
import sys
from pathlib import Path

import demo
import pytest
from outcome import PairVerdict, Verdict
from rich.console import Console

DEMO = Path(demo.__file__)


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DEMO), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)


def test_help_says_what_it_does() -> None:
    done = start("--help")
    assert done.returncode == 0
    assert "two CPU processes" in " ".join(done.stdout.split())


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    done = start("--folder", str(tmp_path))
    assert done.returncode == 2
    assert "something that this demo did not make" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_each_stage_starts_from_the_output_of_an_earlier_one() -> None:
    for track in demo.TRACKS.values():
        made = {str(Path("demo") / track.preset / "hf")}
        for stage in demo.chain(track, Path("demo"), ()):
            assert stage.arguments[stage.arguments.index("--load") + 1] in made
            made.add(str(stage.output))


def test_getting_worse_or_hardly_better_is_a_failure() -> None:
    def verdict(loss: float, accuracy: float) -> Verdict:
        before = {"loss": 6.0, "token_accuracy": 0.01}
        return Verdict("m", before, {"loss": loss, "token_accuracy": accuracy}, [], [], [])

    assert verdict(1.0, 0.9).is_better
    assert not verdict(5.9, 0.02).is_better
    assert not verdict(7.0, 0.5).is_better


def test_pairs_that_are_told_apart_too_seldom_are_a_failure() -> None:
    assert PairVerdict("m", "dpo", before=0.5, after=0.9).is_good
    assert not PairVerdict("m", "dpo", before=0.5, after=0.89).is_good


@pytest.mark.slow
def test_the_whole_chain_runs_and_learns(tmp_path: Path) -> None:
    """Twenty steps of the model with grouped queries, then once more into the same folder."""
    home = tmp_path / "demo"
    for _ in range(2):
        done = start("--fast", "--models", "tiny-llama-gqa", "--folder", str(home))
        assert done.returncode == 0, done.stderr
    assert "together" in done.stdout
    assert done.stderr.count("$ alignctl ") == 5
    result = json.loads((home / "tiny-llama-gqa" / "sft" / "result.json").read_text())
    assert result["steps"] == 20
    assert (home / "tiny-llama-gqa" / "hf-sft" / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_exit_code_is_that_of_the_command_that_failed(
    tmp_path: Path,
) -> None:
    """A tensor-parallel size that does not divide the heads: the second command refuses it."""
    track = demo.TRACKS["tiny-llama"]
    stages = demo.chain(track, tmp_path, ("parallel.tp=3",))
    done, code = demo.run(stages[1], track.preset, Console(stderr=True))
    assert (done.what, code) == ("", 2)
