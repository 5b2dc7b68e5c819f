"""The script of `alignctl completion` in a real shell: what it offers at the end of a line."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.commands import alignctl


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outcome = alignctl("completion", "bash")
    assert outcome.code == 0, outcome.text
    file = tmp_path_factory.mktemp("completion") / "alignctl.bash"
    file.write_text(outcome.out)
    return file


def offered(script: Path, line: str, shell: str = "bash") -> set[str]:
    """What is offered for the last word of a line, as bash splits it."""
    program = (
        'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _alignctl; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        [shell, "-c", program, str(script), *line.split(" ")],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("alignctl sf", {"sft"}),
        ("alignctl prepare g", {"gsm8k"}),
        ("alignctl sft optimizer.l", {"optimizer.lr="}),
        ("alignctl sft --preset llama2-7b lora.r", {"lora.rank="}),
        ("alignctl rlhf --preset llama2", {"llama2-7b", "llama2-13b", "llama2-70b"}),
        ("alignctl presets show qwen2.5", {"qwen2.5-7b"}),
        ("alignctl convert-hf2mg --format ", {"mcore", "legacy"}),
        ("alignctl sft --max-r", {"--max-restarts"}),
    ],
)
def test_a_line_is_completed(script: Path, line: str, words: set[str]) -> None:
    assert offered(script, line) == words


def test_where_nothing_of_ours_fits_files_are_offered(script: Path) -> None:
    assert offered(script, f"alignctl report {script.parent}/ali") == {str(script)}


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_reads_it_too(tmp_path: Path) -> None:
    file = tmp_path / "alignctl.zsh"
    file.write_text(alignctl("completion", "zsh").out)
    words = ["zsh", "-fc", f"autoload -U compinit; compinit -u; source {file}; whence _alignctl"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout
