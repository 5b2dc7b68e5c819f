import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from alignctl import cli
from alignctl.config.presets import library as presets
from alignctl.config.presets.knobs import render_knobs
from alignctl.config.presets.load import load_preset
from tests.tiny import write_model, write_tokenizer

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if path.parent.name != "adr"
}
README = PAGES["README.md"]
EVERY_PAGE = pytest.mark.parametrize("page", PAGES)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
CAN_DRY_RUN = (
    *("convert-hf2mg", "convert-mg2hf", "convert-mg2mg", "pretrain"),
    *("sft", "reward", "dpo"),
    *("rlhf", "online-dpo", "grpo", "generate"),
)

OTHER_PROGRAMS = ("docker", "head", "hf", "mkdir", "pip", "python", "python3.12", "sbatch", "tail")

Run = Callable[[list[str]], tuple[int, str]]


WANT_MODELS = ("verify", "eval", "report")
"""Commands that do nothing without models or runs; others test them."""

WANT_TIME = ("doctor",)
"""What takes long and says the same every time; its own tests run it."""

WANT_FILES = ("prepare", "rewards")
"""Commands that do nothing without data, which they are given in tests of their own."""


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """The commands of its shell blocks, continued lines joined.

    Comments, and what follows ` > ` or ` | `, are left out.
    """
    text = re.sub(
        r" (> \S+|\| .+)$", "", "".join(blocks(page, "sh")).replace("\\\n", " "), flags=re.M
    )
    return [shlex.split(line, comments=True) for line in text.splitlines() if line.strip()]


def table(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table of a page below a heading, without its head."""
    section = PAGES[page].partition(f"# {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def named(cells: list[str]) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", " ".join(cells))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a command in an empty folder; returns its exit code and all it wrote."""
    monkeypatch.chdir(tmp_path)

    def call(words: list[str]) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out + captured.err

    return call


@EVERY_PAGE
def test_every_alignctl_command_is_accepted(page: str, run: Run) -> None:
    """Stages are asked what they would do; the other commands really run, one after the other."""
    left_out = (*WANT_MODELS, *WANT_FILES, *WANT_TIME)
    Path("examples").symlink_to(ROOT / "examples")
    for place in ("llama2-7b", "llama2-70b-mg"):
        Path("models", place).mkdir(parents=True)
    for place in ("runs/llama2-7b-sft", "data/hh/alignment", "data/sft"):
        Path(place).mkdir(parents=True)
    for name in ("runs/llama2-7b-sft/config.json", "runs/llama2-7b-sft/result.json"):
        Path(name).write_text("{}", encoding="utf-8")
    Path("data/hh/alignment/dev.jsonl").touch()
    write_model(Path("models/my-llama"))
    ours = [c for c in commands(page) if c[0] == "alignctl" and c[1] not in left_out]
    for command in ours:
        is_real = command[1] not in CAN_DRY_RUN or "--dry-run" in command
        code, output = run(command if is_real else [*command, "--dry-run"])
        assert code == 0, output


def test_every_stage_has_a_command_on_some_page() -> None:
    typed = {words[1] for page in PAGES for words in commands(page) if words[0] == "alignctl"}
    assert typed >= {*CAN_DRY_RUN, *WANT_MODELS}


@pytest.mark.parametrize("page", ["README.md", "docs/data.md"])
def test_the_commands_that_prepare_data_run(page: str, run: Run, tmp_path: Path) -> None:
    """One after the other, on a few documents and rows, with the tests' tokenizer."""
    for model in ("llama2-7b", "bloom-7b"):
        write_tokenizer(tmp_path / "models" / model)
    turn = "\n\nHuman: Why?\n\nAssistant: "
    rows = {
        "downloads/hh-rlhf/harmless-base": {"chosen": f"{turn}Yes", "rejected": f"{turn}No"},
        "downloads/gsm8k": {"question": "1 + 1?", "answer": "It is 2.\n#### 2"},
        "raw": {"text": "The whale is the largest animal that has ever lived on this earth. " * 3},
    }
    for folder, row in rows.items():
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "train.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    held_out = json.dumps({"question": "1 + 2?", "answer": "It is 3.\n#### 3"}) + "\n"
    (tmp_path / "downloads/gsm8k/test.jsonl").write_text(held_out, encoding="utf-8")
    prepare = [c for c in commands(page) if c[:2] == ["alignctl", "prepare"]]
    wanted = {"hh", "gsm8k"}
    if page != "README.md":
        wanted |= {"clean", "shard", "tokenize", "inspect", "check"}
    assert {c[2] for c in prepare} >= wanted
    for command in prepare:
        code, output = run(command)
        assert code == 0, output
    made = [word for c in commands(page) for word in c if word.startswith("data/gsm8k/")]
    assert not [path for path in made if not Path(path).exists()]


@EVERY_PAGE
def test_every_other_command_is_one_that_exists(page: str) -> None:
    for program, *words in commands(page):
        if program == "make":
            assert set(words) <= TARGETS
        else:
            assert program in ("alignctl", *OTHER_PROGRAMS)
        if program == "python":
            assert (ROOT / words[0]).is_file()


@EVERY_PAGE
def test_every_make_target_that_is_mentioned_exists(page: str) -> None:
    assert set(re.findall(r"`make ([a-z-]+)", PAGES[page])) <= TARGETS


def test_the_errors_are_those_that_a_user_sees(run: Run) -> None:
    for block in blocks("README.md", "console"):
        for example in block.split("$ ")[1:]:
            command, _, expected = example.partition("\n")
            assert run(shlex.split(command)) == (2, expected)


def test_the_table_of_stages_lists_the_stages_that_exist() -> None:
    listed = [name for row in table("README.md", "Stages") for name in named(row[:1])]
    others = ["plan", "report", "doctor", "verify", "launch", "rewards", "completion"]
    helpers = ["prepare", "presets", *others]
    group = typer.main.get_command(cli.app)
    assert sorted([*listed, *helpers]) == sorted(getattr(group, "commands", {}))
    assert all(f"`{name}`" in README for name in helpers)


def test_the_table_of_presets_tells_each_layout() -> None:
    """The layout is TP x PP x DP, ones left out; the number of GPUs is that of all processes."""
    rows = [half for row in table("docs/presets.md", "Presets") for half in (row[:3], row[4:])]
    assert sorted(name for row in rows for name in named(row[:1])) == presets.names()
    for row in rows:
        for name in named(row[:1]):
            settings = load_preset(name).sft
            assert settings is not None
            sizes = {"TP": settings.parallel.tp, "PP": settings.parallel.pp}
            processes = settings.launch.nproc_per_node * settings.launch.nnodes
            sizes["DP"] = processes // (sizes["TP"] * sizes["PP"])
            assert row[1] == " x ".join(f"{kind} {n}" for kind, n in sizes.items() if n > 1)
            assert row[2] == ("CPU" if name.startswith("tiny") else str(processes))


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    assert len(README.splitlines()) < 200
    linked = set(re.findall(r"\]\((docs/[\w.-]+)\)", README))
    assert linked == {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    paths = re.findall(
        r"`((?:src|stages|tests|docs|examples|requirements|presets)/[\w./-]*|[A-Z]+\.md)`", text
    )
    assert paths
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_the_page_of_knobs_is_what_the_classes_say() -> None:
    """After a change of a knob: alignctl presets knobs > docs/knobs.md."""
    assert (ROOT / "docs" / "knobs.md").read_text("utf-8") == render_knobs().rstrip() + "\n"


def test_the_list_of_decisions_is_complete() -> None:
    folder = ROOT / "docs" / "adr"
    linked = re.findall(r"\]\(([\w.-]+)\)", (folder / "README.md").read_text("utf-8"))
    assert sorted([*linked, "README.md"]) == sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "path",
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_pages_are_plain_text_of_a_hundred_columns(path: Path) -> None:
    """Tables, and output that is quoted as it is, may be wider."""
    lines = path.read_bytes().decode("ascii").splitlines()
    assert not [line for line in lines if len(line) > 100 and not line.startswith(("|", "error:"))]
