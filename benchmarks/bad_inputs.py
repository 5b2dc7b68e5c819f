"""Bad inputs of all kinds through the command line, and what became of them.

    python benchmarks/bad_inputs.py                        # 1,500 of them
    python benchmarks/bad_inputs.py --count 200 --seed 7 --only rows templates

Each input is a command in a copy of a workspace with a tiny model, of which one file, flag or key
was changed at random: another type, a huge number, control characters, deep nesting, a part cut
off, bytes changed, another encoding, a key twice, a pipe in the place of a file. It runs in a fork
of this process, which has imported the libraries, and is ended after 60 s. The table counts for
each class:

- refused: exit code 2, `error:` and no traceback;
- accepted: exit code 0, where the change may be harmless (a comment, a value that is allowed);
- nonsense: exit code 0, where the change is of a kind that nothing can make sense of: text that is
  cut, a type that the key does not have, a special file, NaN. What a mutator cannot be sure of is
  never counted here, so this column is a lower bound;
- failed: exit code 1 with words and no traceback (a run, or what stands behind it, failed);
- traceback, hang: as they are called.

At the end, the most processor time that a fault of the configuration takes in a fresh process.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests import tiny  # noqa: E402

SECONDS = 60
OUTCOMES = ("refused", "accepted", "nonsense", "failed", "traceback", "hang")
ODD: list[Any] = [
    None, True, -1, 0, 2**31, 2**64, 10**30, 10**400, -(10**40), 1e308, -0.0, float("nan"),
    float("inf"), "", " ", "x" * 300, "a\x00b", "\x1b[31m", "\u202e", "\ud800", "../..", "NaN",
    "10^400 GB", [], {}, [[]], {"": 0}, [None], {"a": {"b": {}}}, [1, "a"], "é" * 50,
]  # fmt: skip
WORDS = [
    "", " ", "x" * 300, "a/" * 3000, ".", "..", "/", "-", "--", "a\nb", "\x1b[2J", "\x07", "\ud800",
    "\u202egnp", "/dev/null", "/dev/zero", "/proc/self/mem", "/proc/1/environ", "pipe", "~", "*",
    "hf", "hf/config.json", "tiny.yaml", "train.jsonl", "no/such", "nan", "-1", "1e400", "9" * 5000,
    "10^400 GB", "1" + "0" * 400 + "GB", "2**64", "%s%n", "{}", "'", '"', "$(id)", "a=b", "=", "🙂",
]  # fmt: skip


@dataclass(frozen=True)
class Input:
    """One bad input.

    Attributes:
        arguments: Of `alignctl`; relative to the workspace.
        change: Makes the change in the copy of the workspace.
        is_nonsense: Whether nothing can make sense of it.
        told: What was changed, for the reader of the list.
    """

    arguments: list[str]
    change: Callable[[Path], None]
    is_nonsense: bool
    told: str


def mutate_bytes(data: bytes, rng: random.Random) -> tuple[bytes, bool, str]:
    """Change content; tell whether no reader of text can make sense of it, and name the change."""
    place = rng.randrange(len(data) + 1)
    kind = rng.choice(["cut", "flip", "insert", "repeat", "deep", "utf16", "bom", "nul", "latin"])
    if kind == "cut":
        return data[:place], False, kind
    if kind == "flip":
        return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :], False, kind
    if kind == "insert":
        junk = rng.choice([b"\x00", b"\x1b[31m", b"\xff\xfe", b"{{", b"[" * 3000, b"9" * 5000])
        return data[:place] + junk + data[place:], False, kind
    if kind == "repeat":
        return data[:place] + data[place // 2 : place] * rng.choice([1, 50]) + data, False, kind
    if kind == "deep":
        return rng.choice([b"[", b'{"a":', b"- ", b"(("]) * rng.choice([100, 3000]), True, kind
    if kind == "utf16":
        return data.decode("utf-8", "replace").encode("utf-16"), True, kind
    if kind == "bom":
        return b"\xef\xbb\xbf" + data, False, kind
    if kind == "nul":
        return bytes(rng.choice([0, 1, 100, 10_000])), True, kind
    return data[:place] + b"\xe9\xe8" + data[place:], False, kind


def mutate_tree(tree: Any, rng: random.Random) -> tuple[Any, bool, str]:
    """Make one value of a tree one of another kind; tell whether that kind is impossible."""
    places = list(_places(tree))
    path = rng.choice(places)
    value = _at(tree, path)
    odd = rng.choice(ODD)
    kind = rng.choice(["odd", "odd", "odd", "remove", "rename", "wrap", "double"])
    copy = json.loads(json.dumps(tree))
    owner = _at(copy, path[:-1])
    if kind == "remove":
        del owner[path[-1]]
    elif kind == "rename" and isinstance(owner, dict):
        owner[f"{path[-1]}\x1b"] = owner.pop(path[-1])
    elif kind == "wrap":
        owner[path[-1]] = [value] if rng.random() < 0.5 else {"a": value}
    elif kind == "double" and isinstance(value, list):
        owner[path[-1]] = value * 1000
    else:
        kind, owner[path[-1]] = f"{odd!r:.30}", odd
    number, found = isinstance(value, int | float) and not isinstance(value, bool), odd
    is_nonsense = number and kind == f"{odd!r:.30}" and isinstance(found, list | dict)
    return copy, is_nonsense, f"{'.'.join(map(str, path))}: {kind}"


def _places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items: Any = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from _places(value, (*path, key))


def _at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def special(name: str, rng: random.Random) -> tuple[Callable[[Path], None], str]:
    """Put a pipe, device, folder, loop, or file of a terabyte under a name."""
    kind = rng.choice(["pipe", "zero", "null", "folder", "loop", "sparse", "unreadable", "gone"])

    def change(folder: Path) -> None:
        file = folder / name
        file.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(file)
        elif kind in ("zero", "null"):
            file.symlink_to(f"/dev/{kind}")
        elif kind == "folder":
            file.mkdir()
        elif kind == "loop":
            file.symlink_to(file)
        elif kind == "sparse":
            with file.open("wb") as stream:
                stream.truncate(1 << 40)
        elif kind == "unreadable":
            file.symlink_to("/proc/self/mem")

    return change, f"{name}: {kind}"


def of_file(name: str, arguments: list[str], rng: random.Random) -> Input:
    """Make a command that reads a file changed as text or as a tree, or replaced by no file."""
    roll = rng.random()
    if roll < 0.1:
        change, told = special(name, rng)
        return Input(arguments, change, "gone" not in told, told)
    data = (WORKSPACE / name).read_bytes()
    try:
        tree = (yaml.safe_load if name.endswith(".yaml") else json.loads)(data)
    except (ValueError, UnicodeDecodeError):
        tree = None
    if isinstance(tree, dict | list) and roll < 0.7:
        tree, is_nonsense, told = mutate_tree(tree, rng)
        dump = yaml.safe_dump if name.endswith(".yaml") else json.dumps
        try:
            new = dump(tree).encode("utf-8", "surrogatepass")
        except (ValueError, UnicodeEncodeError):  # Python writes no integer of so many digits
            new = json.dumps(str(told)).encode()
    elif name.endswith(".jsonl") and roll < 0.7:
        rows = data.splitlines()
        place = rng.randrange(len(rows))
        tree, _, told = mutate_tree(json.loads(rows[place]), rng)
        rows[place] = json.dumps(tree).encode() if rng.random() < 0.9 else b'{"a": ' + b"9" * 5000
        is_nonsense, new = b"9" * 4999 in rows[place], b"\n".join(rows)
    else:
        new, is_nonsense, told = mutate_bytes(data, rng)
    # What cannot be read of a text is put aside by `prepare clean`, and told.
    is_nonsense = is_nonsense and new != data and "clean" not in arguments
    return Input(arguments, partial(_write, name, new), is_nonsense, f"{name}: {told}")


def _write(name: str, content: bytes, folder: Path) -> None:
    (folder / name).write_bytes(content)


CHECK = ["prepare", "check", "sft", "train.jsonl", "--preset", "tiny.yaml", "--tokenizer", "hf"]
HF2MG = ["convert-hf2mg", "--load", "hf", "--save", "new", "--verify", "none"]
MG2HF = ["convert-mg2hf", "--load", "mg", "--save", "new", "--verify", "none"]
SFT = ["sft", "--preset", "tiny.yaml", "--load", "hf", "--data", "train.jsonl", "--output", "new"]
BENCH = [
    "eval", "mt-bench", "a=answers.jsonl", "--questions", "questions.jsonl", "--judge-prompts",
    "judge.jsonl", "--judge-model", "j", "--judge-url", "http://127.0.0.1:9", "--attempts", "1",
    "--output", "new",
]  # fmt: skip
COMMANDS = [
    [*SFT, "--dry-run"], CHECK, HF2MG, MG2HF, BENCH, ["report", "run", "--output", "new.html"],
    ["plan", "--preset", "tiny.yaml"], ["presets", "show", "tiny.yaml"],
    ["presets", "copy", "tiny.yaml", "new.yaml"],
    ["prepare", "shard", "train.jsonl", "--output", "new", "--bytes", "5MB", "--seed", "1"],
    ["prepare", "tokenize", "text.jsonl", "--tokenizer", "hf", "--output", "new/a"],
    ["prepare", "clean", "text.jsonl", "--output", "new", "--key", "text", "--workers", "1"],
    ["prepare", "alpaca", "alpaca.json", "--output", "new", "--dev-fraction", "0.1"],
    ["prepare", "hh", "pairs.jsonl", "--output", "new"],
    ["launch", "slurm", "sft", "--preset", "tiny.yaml", "--nnodes", "2", "--time", "1:00:00"],
    ["verify", "hf", "hf"],
]  # fmt: skip


def presets(rng: random.Random) -> Input:
    """Change a preset file."""
    commands = [["presets", "validate", "tiny.yaml"], ["presets", "show", "tiny.yaml"], CHECK]
    each = of_file("tiny.yaml", rng.choice([*commands, [*SFT, "--dry-run"]]), rng)
    # A stage does not look at the sections of others.
    return replace(each, is_nonsense=each.is_nonsense and "validate" in each.arguments)


def overrides(rng: random.Random) -> Input:
    """Set a key to an odd value."""
    from alignctl.config.presets.load import STAGES
    from alignctl.config.presets.problems import known_keys

    stage = rng.choice(["sft", "reward", "dpo", "pretrain"])
    key = rng.choice(known_keys(STAGES[stage]))
    odd = rng.choice(
        [*WORDS, *(f"{odd}" for odd in ODD if odd != 10**400), "[" * 3000, "!!bool zz"]
    )
    odd = rng.choice([odd, odd, f"&a {odd}", "*a", f"{{{odd}", f"[{odd}]"])
    value = f"{key}={odd}"
    arguments = [stage, *SFT[1:], "--dry-run", value]
    is_nonsense = any(mark in value for mark in ("\x1b", "\x07", "\x00", "[[[", "!!bool", "*a"))
    return Input(arguments, lambda _: None, is_nonsense, value)


def flags(rng: random.Random) -> Input:
    """Replace a word of a command, or add one."""
    arguments = list(rng.choice(COMMANDS))
    places = range(1, len(arguments))
    place, word = rng.choice(places), rng.choice(WORDS)
    if rng.random() < 0.3:
        arguments[place:place] = [word]
    else:
        arguments[place] = word
    arguments = [each.replace("\0", "") for each in arguments]
    return Input(arguments, lambda folder: os.mkfifo(folder / "pipe"), False, repr(word)[:40])


def rows(rng: random.Random) -> Input:
    """Change a file of rows."""
    name, command = rng.choice(
        [
            ("train.jsonl", CHECK),
            ("pairs.jsonl", ["prepare", "check", "dpo", "pairs.jsonl", *CHECK[4:]]),
            ("pairs.jsonl", ["prepare", "hh", "pairs.jsonl", "--output", "new"]),
            ("chat.jsonl", ["prepare", "check", "sft", "chat.jsonl", *CHECK[4:]]),
            ("prompts.jsonl", ["prepare", "check", "sft", "prompts.jsonl", *CHECK[4:]]),
            ("alpaca.json", ["prepare", "alpaca", "alpaca.json", "--output", "new"]),
            ("rows.jsonl.gz", ["prepare", "check", "sft", "rows.jsonl.gz", *CHECK[4:]]),
            ("rows.jsonl.zst", ["prepare", "check", "sft", "rows.jsonl.zst", *CHECK[4:]]),
            ("rows.parquet", ["prepare", "check", "sft", "rows.parquet", *CHECK[4:]]),
            ("text.jsonl", COMMANDS[10]),
            ("text.jsonl", COMMANDS[11]),
            ("train.jsonl", COMMANDS[9]),
        ]
    )  # fmt: skip
    return of_file(name, command, rng)


def tokenizers(rng: random.Random) -> Input:
    """Change a file of a tokenizer."""
    name = rng.choice(["tokenizer.json", "tokenizer_config.json", "config.json"])
    each = of_file(f"hf/{name}", CHECK, rng)
    # Of the model's config only the ids of special tokens are read here.
    return replace(each, is_nonsense=each.is_nonsense and name != "config.json")


TEMPLATES = [
    "{% for i in range(10**9) %}x{% endfor %}", "{{ 10 ** (10 ** 9) }}", "{{ 'a' * 10 ** 10 }}",
    "{% for i in range(9999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "{{ a.b.c }}",
    "{% endfor %}", "{{", "{{ messages[9] }}", "{% include 'x' %}", "{{ ''.__class__.__mro__ }}",
    "{{ raise_exception('\x1b[31m') }}", "{{ 1 // 0 }}", "{% macro f() %}{{ f() }}{% endmacro %}"
    "{{ f() }}", "{{ messages | tojson(indent=10**9) }}", "{{ '%*d' % (10**9, 1) }}", "", "x",
    "{{ lipsum(10**6) }}", "{% set ns = namespace(a=[1]) %}{{ ns.a * 10**9 }}", "{{ '\ud800' }}",
    "{{ range(10) | map('abs') | list | random | foo }}", "(" * 5000, "{% if " + "(" * 500,
    "{{ messages | batch(10**9, 'x') | list }}", "{{ 'x' | center(10**10) }}", "\x00{{ 1 }}",
    "{{ 'x' | indent(10**9) }}", "{% generation %}", "{{ [1] | sum(start=[]) }}",
]  # fmt: skip


def templates(rng: random.Random) -> Input:
    """Make a chat template that is none, or does not end."""
    command = ["prepare", "check", "sft", "chat.jsonl", *CHECK[4:], "data.template=tokenizer"]
    template: Any = rng.choice(TEMPLATES) if rng.random() < 0.7 else rng.choice(ODD)
    if rng.random() < 0.3:
        template = rng.choice([[template], [{"name": template}], {"a": template}])
    good = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    if isinstance(template, str) and rng.random() < 0.5:
        template = rng.choice([template + good, good + template])
    if template == 10**400:
        template = 1

    def change(folder: Path) -> None:
        file = folder / "hf/tokenizer_config.json"
        settings = json.loads(file.read_text()) | {"chat_template": template}
        file.write_text(json.dumps(settings))

    is_nonsense = isinstance(template, int | float | dict)
    return Input(command, change, is_nonsense, f"chat_template: {template!r:.40}")


def models(rng: random.Random) -> Input:
    """Change a file of a Hugging Face model."""
    name = rng.choice(["config.json", "config.json", "model.safetensors", "generation_config.json"])
    if name == "model.safetensors" and rng.random() < 0.7:
        data = (WORKSPACE / "hf" / name).read_bytes()
        length = int.from_bytes(data[:8], "little")
        header, is_nonsense, told = mutate_tree(json.loads(data[8 : 8 + length]), rng)
        try:
            text = json.dumps(header).encode("utf-8", "surrogatepass")
        except ValueError:
            text = b"{"
        size = rng.choice([len(text)] * 8 + [0, 2**63])
        new = size.to_bytes(8, "little") + text + data[8 + length :]
        return Input(HF2MG, partial(_write, f"hf/{name}", new), is_nonsense, f"{name}: {told}")
    each = of_file(f"hf/{name}", HF2MG, rng)
    # Which tokens end a text is taken along, and read where texts are.
    return replace(each, is_nonsense=each.is_nonsense and "token_id" not in each.told)


def megatron(rng: random.Random) -> Input:
    """Change a file of a Megatron checkpoint."""
    files = [f for f in (WORKSPACE / "mg").rglob("*") if f.is_file()]
    name = str(rng.choice(files).relative_to(WORKSPACE))
    return of_file(name, MG2HF, rng)


def runs(rng: random.Random) -> Input:
    """Change a file of a run folder."""
    names = ["config.json", "result.json", "metrics.jsonl", "environment.json", "command.txt"]
    name = rng.choice([*names, "metrics.jsonl"])
    each = of_file(f"run/{name}", ["report", "run", "--output", "new.html"], rng)
    # A report shows the values that are there, and counts the lines of metrics that it cannot read.
    is_shown = name not in ("config.json", "result.json") or each.told.count(": ") > 1
    return replace(each, is_nonsense=each.is_nonsense and not is_shown)


def questions(rng: random.Random) -> Input:
    """Change a file of MT-Bench."""
    return of_file(rng.choice(["questions.jsonl", "answers.jsonl", "judge.jsonl"]), BENCH, rng)


CLASSES: dict[str, Callable[[random.Random], Input]] = {
    each.__name__: each
    for each in (
        presets, overrides, flags, rows, tokenizers, templates, models, megatron, runs, questions
    )
}  # fmt: skip
WORKSPACE = Path()


def make_workspace(folder: Path) -> None:
    """Write a file of every kind that commands read, all of them as they should be."""
    import gzip

    import pyarrow
    import pyarrow.parquet
    import zstandard

    tiny.write_model(folder / "hf")
    tiny.write_preset(folder / "tiny.yaml")
    lines = tiny.write_rows(folder / "train.jsonl").read_bytes()
    tiny.write_pairs(folder / "pairs.jsonl")
    sums = [(f"{a} + 1?", f"{a + 1}") for a in range(20)]
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in sums]
    tiny.write_rows(folder / "chat.jsonl", [{"messages": each} for each in turns])
    tiny.write_rows(folder / "prompts.jsonl", [{"prompt": q, "response": a} for q, a in sums])
    tiny.write_rows(folder / "text.jsonl", [{"text": q + a} for q, a in sums])
    alpaca = [{"instruction": q, "input": "", "output": a} for q, a in sums]
    (folder / "alpaca.json").write_text(json.dumps(alpaca))
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(lines))
    (folder / "rows.jsonl.zst").write_bytes(zstandard.compress(lines))
    table = pyarrow.Table.from_pylist([json.loads(line) for line in lines.splitlines()])
    pyarrow.parquet.write_table(table, folder / "rows.parquet")
    run = folder / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"stage": "sft", "preset": "x", **tiny.preset()}))
    (run / "result.json").write_text(json.dumps({"steps": 3}))
    (run / "environment.json").write_text(json.dumps({"torch": "2", "devices": ["cpu"]}))
    (run / "command.txt").write_text("alignctl sft\n")
    steps = [{"kind": "train", "step": n, "time": 1.0 * n, "loss": 1 / n} for n in range(1, 9)]
    tiny.write_rows(run / "metrics.jsonl", [{"kind": "start", "total": 8, "time": 0.0}, *steps])
    asked = {"question_id": 1, "category": "writing", "turns": ["Hi?", "And?"]}
    tiny.write_rows(folder / "questions.jsonl", [asked])
    said = {"question_id": 1, "choices": [{"index": 0, "turns": ["Hi.", "No."]}]}
    tiny.write_rows(folder / "answers.jsonl", [said])
    names = [f"{n}{s}" for n in ("single-v1", "single-math-v1") for s in ("", "-multi-turn")]
    form = {"system_prompt": "", "prompt_template": "{question_1} {answer_1} [[1]]"}
    tiny.write_rows(folder / "judge.jsonl", [{"name": name, **form} for name in names])


def attempt(each: Input, folder: Path) -> tuple[str, str]:
    """Run a command in a fork, in a copy of the workspace; return the outcome and its output."""
    shutil.copytree(WORKSPACE, folder)
    each.change(folder)
    pid = os.fork()
    if pid == 0:
        _run(each.arguments, folder)
    deadline = time.monotonic() + SECONDS
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return "hang", ""
        time.sleep(0.005)
    said = (folder / ".said").read_text("utf-8", "replace")
    code = os.waitstatus_to_exitcode(status)
    if "Traceback (most" in said or "this is a defect" in said or code < 0:
        return "traceback", said
    if code == 0:
        return "nonsense" if each.is_nonsense else "accepted", said
    return ("refused" if code == 2 and "error:" in said else "failed"), said


def _run(arguments: list[str], folder: Path) -> None:
    """Run the command in the fork, with its output in a file."""
    os.setsid()
    os.chdir(folder)
    said = os.open(".said", os.O_WRONLY | os.O_CREAT)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.argv = ["alignctl", *arguments]
    code = 1
    try:
        from alignctl import cli

        cli.main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def fault_seconds(folder: Path) -> float:
    """Measure the most processor time of a mistake in the configuration, in fresh processes."""
    most = 0.0
    for arguments in (
        [*SFT, "optimizer.lr=abc"],
        [*SFT, "optimzer.lr=1"],
        ["presets", "validate", "broken.yaml"],
        ["presets", "validate", "large.yaml"],
        ["dpo", *SFT[1:], "train.steps=-1"],
    ):
        (folder / "broken.yaml").write_text("a: *b\n")
        (folder / "large.yaml").write_text("a: [1, 2]\n" * 6_500)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [str(Path(sys.executable).with_name("alignctl")), *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
        assert done.returncode == 2, done.stderr
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        most = max(most, used)
    return most


def main() -> int:
    """Print the table; return 1 where there are tracebacks, hangs or accepted nonsense."""
    global WORKSPACE
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=CLASSES, default=list(CLASSES))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="alignctl-bad-inputs-") as scratch:
        WORKSPACE = Path(scratch) / "workspace"
        WORKSPACE.mkdir()
        make_workspace(WORKSPACE)
        command = [str(Path(sys.executable).with_name("alignctl")), *HF2MG]
        command[command.index("new")] = "mg"
        subprocess.run(command, cwd=WORKSPACE, check=True, capture_output=True)

        found = attack(arguments.only, arguments.count, arguments.seed, Path(scratch))
        _print_table(found)
        print(f"\na fault of the configuration: at most {fault_seconds(WORKSPACE):.2f} s (CPU)")
    return int(any(found[name][bad] for name in found for bad in ("traceback", "hang", "nonsense")))


def attack(names: list[str], count: int, seed: int, scratch: Path) -> dict[str, Counter[str]]:
    """Try so many inputs, of all classes in turn; print those that are faults of ours."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for number in range(count):
        name = names[number % len(names)]
        each = CLASSES[name](random.Random(f"{seed}/{number}"))
        outcome, said = attempt(each, scratch / str(number))
        shutil.rmtree(scratch / str(number), ignore_errors=True)
        found[name][outcome] += 1
        if outcome in ("traceback", "hang", "nonsense"):
            last = [line for line in said.splitlines() if line.strip()][-6:]
            shown = " ".join(each.arguments)[:150].encode("ascii", "backslashreplace").decode()
            print(f"{outcome} {name} #{number}: {shown} [{each.told!a}]", *last, sep="\n    ")
            sys.stdout.flush()
    return found


def _print_table(found: dict[str, Counter[str]]) -> None:
    print(f"{'class':<12}{'inputs':>8}" + "".join(f"{each:>11}" for each in OUTCOMES))
    total: Counter[str] = Counter()
    for name, counts in found.items():
        total += counts
        _print_row(name, counts)
    _print_row("all", total)


def _print_row(name: str, counts: Counter[str]) -> None:
    print(f"{name:<12}{counts.total():>8}" + "".join(f"{counts[each]:>11}" for each in OUTCOMES))


if __name__ == "__main__":
    sys.exit(main())
