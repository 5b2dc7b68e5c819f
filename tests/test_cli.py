import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from alignctl import __version__, cli
from alignctl.config.presets import library as presets

COMMANDS = [
    ["convert-hf2mg"],
    ["convert-mg2hf"],
    ["sft"],
    ["reward"],
    ["dpo"],
    ["launch"],
    ["launch", "slurm"],
    ["launch", "kubernetes"],
    ["presets"],
    ["presets", "list"],
    ["presets", "show"],
    ["presets", "copy"],
    ["presets", "validate"],
    ["presets", "schema"],
    ["doctor"],
    ["report"],
    [],
]
HEAVY = ("torch", "megatron", "transformers", "vllm", "deepspeed")


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


Alignctl = Callable[..., Outcome]


@pytest.fixture
def alignctl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Alignctl:
    """Runs a command in this process."""

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["alignctl", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        code = caught.value.code or 0
        assert isinstance(code, int)
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_an_example_in_its_help(alignctl: Alignctl, command: list[str]) -> None:
    outcome = alignctl(*command, "--help")
    assert outcome.code == 0
    assert "Example:\n    alignctl " in outcome.out
    assert outcome.err == ""


def test_the_version_is_data(alignctl: Alignctl) -> None:
    assert alignctl("--version") == Outcome(0, f"alignctl {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["sftt"], "No such command 'sftt'. Did you mean 'sft'?", "alignctl --help"),
        (["sft", "--nprok", "2"], "No such option: --nprok", "alignctl sft --help"),
        (["sft"], "--preset is missing", "alignctl presets list"),
        (["plan"], "Missing option '--preset'", "alignctl plan --help"),
        (["sft", "--preset", "x", "--nproc", "two"], "--nproc", "alignctl sft --help"),
        (["sft", "--preset", "lama2-7b"], "did you mean llama2-7b?", "presets: bloom-13b, "),
        (["convert-hf2mg", "--load", "a", "--save", "b", "--format", "old"], "'old'", "--help"),
        (["presets", "show", "nothing.yaml"], "nothing.yaml: cannot be read", ""),
        (
            ["presets", "show", "llama2-7b", "sftt"],
            "no stage 'sftt'; did you mean 'sft'?",
            "stages:",
        ),
        (["presets", "copy", "tiny-llama", "."], ". exists already", ""),
        (["presets", "frobnicate"], "No such command", "alignctl presets --help"),
    ],
)
def test_a_mistake_is_explained_on_stderr(
    alignctl: Alignctl, arguments: list[str], error: str, hint: str
) -> None:
    outcome = alignctl(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert error in outcome.err.splitlines()[0]
    assert "Traceback" not in outcome.err
    if hint:
        assert f"hint: {hint}" in outcome.err or hint in outcome.err.splitlines()[-1]


def test_a_run_without_model_and_data_is_refused_before_it_starts(
    alignctl: Alignctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = alignctl("sft", "--preset", "tiny-llama")
    assert outcome.code == 2
    assert "--load is missing" in outcome.err
    assert "--data is missing" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_an_unforeseen_failure_asks_for_a_report(
    alignctl: Alignctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> list[str]:
        raise RuntimeError("out of cheese")

    monkeypatch.setattr(presets, "names", fail)
    outcome = alignctl("presets", "list")
    assert outcome.code == 1
    assert "error: unexpected RuntimeError: out of cheese" in outcome.err
    assert "hint: this is a defect of alignctl" in outcome.err
    assert "Traceback" in outcome.err


def test_a_dry_conversion_prints_its_options_and_writes_nothing(
    alignctl: Alignctl, tmp_path: Path
) -> None:
    save = tmp_path / "mg"
    arguments = ["--load", "hf", "--save", str(save), "--preset", "llama2-70b", "--dtype", "bf16"]
    outcome = alignctl("convert-hf2mg", *arguments, "--dry-run")
    options = json.loads(outcome.out)
    assert outcome.code == 0
    assert (options["tp"], options["pp"], options["dtype"]) == (8, 4, "bf16")
    assert options["model"]["num_query_groups"] == 8
    assert not save.exists()


def test_presets_can_be_listed_shown_copied_and_checked(alignctl: Alignctl, tmp_path: Path) -> None:
    listed = alignctl("presets", "list").out.splitlines()
    assert [line.split()[0] for line in listed] == presets.names()
    assert all(name in alignctl("presets", "list").err for name in presets.recipes())

    shown = yaml.safe_load(alignctl("presets", "show", "llama2-7b", "optimizer.lr=1e-3").out)
    assert shown["sft"]["optimizer"]["lr"] == 1e-3
    alone = alignctl("presets", "show", "llama2-7b", "online-dpo", "loss.beta=0.2").out
    assert list(yaml.safe_load(alone)) == ["model", "convert", "online_dpo"]
    assert "beta: 0.2 # override 'loss.beta=0.2'\n" in alone
    as_json = json.loads(alignctl("presets", "show", "llama2-7b", "dpo", "--json").out)
    assert as_json["dpo"]["parallel"]["tp"] == 8

    mine = tmp_path / "mine.yaml"
    assert alignctl("presets", "copy", "llama2-7b", str(mine)).code == 0
    assert alignctl("presets", "validate", str(mine)) == Outcome(0, f"{mine}: ok\n", "")

    bad = tmp_path / "bad.yaml"
    bad.write_text(mine.read_text().replace("num_layers:", "num_layer:"))
    outcome = alignctl("presets", "validate", str(mine), str(bad), "tiny-lama")
    assert outcome.code == 2
    assert outcome.out == f"{mine}: ok\n"
    assert "key 'model.num_layers' is missing" in outcome.err
    assert "did you mean 'model.num_layers'?" in outcome.err
    assert "there is no preset 'tiny-lama'" in outcome.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["sft", "--help"],
        ["sft", "--preset", "tiny-llama", "optimzer.lr=1"],
        ["sft", "--preset", "llama2-7b", "--nproc", "3"],
        ["dpo", "--preset", "llama2-7b", "loss.variant=ipo", "loss.label_smoothing=0.1"],
        ["presets", "validate", "tiny-bloom"],
    ],
    ids=" ".join,
)
def test_help_and_configuration_import_nothing_heavy(arguments: list[str]) -> None:
    """In a process of its own, as this one may have imported torch for another test."""
    code = (
        "import sys\n"
        "from alignctl.cli import main\n"
        f"sys.argv = ['alignctl', *{arguments!r}]\n"
        "try:\n    main()\n"
        f"finally:\n    print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "Traceback" not in done.stderr


def test_words_are_plain_where_colour_is_unwelcome(alignctl: Alignctl) -> None:
    assert "\x1b" not in alignctl("sftt").err


@pytest.mark.parametrize(
    ("library", "command"),
    [
        ("torch", "sft --preset tiny-llama --load {0} --data {0}"),
        ("xxhash", "convert-hf2mg --preset tiny-llama --load {0} --save {0}-new"),
        ("tokenizers", "prepare tokenize {0} --tokenizer {0} --output {0}-new"),
    ],
)
def test_a_library_that_is_not_installed_is_named_with_its_extra(
    tmp_path: Path, library: str, command: str
) -> None:
    """None in the table of modules is how Python notes that there is no such module."""
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "response": "b", "text": "c"}\n')
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    program = (
        f"import sys; sys.modules[{library!r}] = None\n"
        f"sys.argv = ['alignctl', *{command.format(tmp_path).split()!r}]\n"
        "from alignctl import cli; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert f"error: this command needs {library}, which is not installed\n" in done.stderr
    assert "'.[cpu]'" in done.stderr


def flags_of(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every flag and argument of a command and of those below it, with the command's words."""
    for param in command.params:
        yield " ".join([*words, param.name]), param
    for name, inner in getattr(command, "commands", {}).items():
        yield from flags_of(inner, (*words, name))


def test_no_number_of_a_flag_is_unbounded() -> None:
    numbers = {
        name: flag
        for name, flag in flags_of(typer.main.get_command(cli.app))
        if flag.type_descriptor.annotation in (int, float)
    }
    assert {"sft nproc", "prepare shard seed", "eval mt-bench prompt_price"} <= set(numbers)
    bounds = {
        name: (getattr(flag, "min", None), getattr(flag, "max", None))
        for name, flag in numbers.items()
    }
    assert {name: each for name, each in bounds.items() if None in each} == {}


@pytest.mark.parametrize("value", ["1" * 40, "nan", "inf"])
def test_a_flag_that_is_no_sensible_number_is_named(alignctl: Alignctl, value: str) -> None:
    outcome = alignctl("plan", "--preset", "tiny-llama", "--gpu-memory", value)
    assert outcome.code == 2
    assert "Invalid value for '--gpu-memory'" in outcome.err


def test_the_flag_is_blamed_for_the_number_of_processes(alignctl: Alignctl) -> None:
    """16 sequences by 8 on each of 1000 / TP 2 ranks."""
    outcome = alignctl("sft", "--preset", "tiny-llama", "--nproc", "1000", "--dry-run")
    assert outcome.code == 2
    assert outcome.err.startswith(
        "error: --nproc 1000: batch.global_batch_size 16 is not divisible"
    )


COMMAND = str(Path(sys.executable).with_name("alignctl"))


def run_in_shell(line: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a line of shell in which `$0` is the command."""
    words = ["bash", "-c", line, COMMAND]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("$0 presets list > /dev/full", 1, "error: the output cannot be written: No space left"),
        ("$0 presets list >&-", 0, ""),
        ("$0 presets list | true; exit ${PIPESTATUS[0]}", 141, ""),
        ("$0 presets show nope 2>&-", 2, ""),
        ("mkdir a; cd a; rmdir ../a; $0 presets list", 2, "error: the folder that you are in was"),
        ("ln -s a a; $0 prepare clean a --output a", 2, "error: "),
    ],
)
def test_a_hostile_shell_is_told_on_one_line(
    tmp_path: Path, line: str, code: int, said: str
) -> None:
    done = run_in_shell(line, tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(said)
    assert "defect" not in done.stderr
    assert "Exception ignored" not in done.stderr
