import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from alignctl.errors import UserError
from alignctl.sources.download import files_of, license_of
from alignctl.sources.preparation import Options, prepare
from tests.commands import alignctl
from tests.tiny import write_preset, write_tokenizer


def write(file: Path, rows: Iterable[object]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return file


def sums(start: int, count: int) -> list[dict[str, str]]:
    return [
        {"question": f"What is {n} + 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"}
        for n in range(start, start + count)
    ]


def rows_in(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_a_share_of_the_prompts_is_held_out_always_the_same_ones(tmp_path: Path) -> None:
    write(tmp_path / "a/train.jsonl", sums(0, 200))
    write(tmp_path / "b/train.jsonl", reversed(sums(0, 300)))
    sides = []
    for name in "ab":
        outcome = prepare(Options("gsm8k", (tmp_path / name,), tmp_path / f"out-{name}", 0.2))
        sides.append({row["prompt"] for row in rows_in(tmp_path / f"out-{name}/math/dev.jsonl")})
        assert outcome.dev == len(sides[-1])
        assert outcome.train + outcome.dev == outcome.rows
    assert 20 <= len(sides[0]) <= 60
    assert sides[0] < sides[1]


def test_held_out_files_are_held_out_and_never_trained_on(tmp_path: Path) -> None:
    write(tmp_path / "in/train.jsonl.gz", sums(0, 20))
    write(tmp_path / "in/test.jsonl.gz", sums(15, 10))
    outcome = prepare(Options("gsm8k", (tmp_path / "in",), tmp_path / "out"))
    assert (outcome.train, outcome.dev, outcome.dropped["repeated"]) == (15, 10, 5)
    answers = [row["answer"] for row in rows_in(tmp_path / "out/math/dev.jsonl")]
    assert answers == [str(n + 1) for n in range(15, 25)]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("license: mit", "mit"),
        ("license: [mit, apache-2.0]", "mit, apache-2.0"),
        ("license:\n- mit\n- cc-by-4.0\ntags: [a]", "mit, cc-by-4.0"),
        ("license: &a [*a]", "a, a"),
        ("tags: [a]", None),
    ],
)
def test_a_data_card_may_name_licences(tmp_path: Path, told: str, expected: str | None) -> None:
    (tmp_path / "README.md").write_text(f"---\n{told}\n---\n# Sums\n")
    assert license_of([tmp_path]) == expected


def test_the_manifest_tells_where_everything_comes_from(tmp_path: Path) -> None:
    file = write(tmp_path / "in/train.jsonl", sums(0, 50))
    (tmp_path / "in/README.md").write_text("---\nlicense: mit\n---\n# Sums\n")
    prepare(Options("gsm8k", (tmp_path / "in",), tmp_path / "out"))
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["license"] == "mit"
    assert manifest["source"][0]["bytes"] == file.stat().st_size
    written = {entry["name"]: entry["rows"] for entry in manifest["files"]}
    assert written["sft/train.jsonl"] == len(rows_in(tmp_path / "out/sft/train.jsonl"))
    assert sum(written.values()) == 2 * 50


def test_maths_folders_of_objects_are_read(tmp_path: Path) -> None:
    for side, count in (("train", 3), ("test", 2)):
        for n in range(count):
            file = tmp_path / f"MATH/{side}/algebra/{n}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            row = {"problem": f"{side} {n}", "solution": rf"\boxed{{{n}}}"}
            file.write_text(json.dumps(row, indent=2))
    outcome = prepare(Options("math", (tmp_path / "MATH",), tmp_path / "out"))
    assert (outcome.train, outcome.dev) == (3, 2)


def test_the_folders_of_a_download_are_searched(tmp_path: Path) -> None:
    for name in ("harmless-base", "helpful-base", "red-team-attempts", ".cache"):
        write(tmp_path / name / "train.jsonl", [])
        write(tmp_path / name / "test.jsonl", [])
    for role, file in (("train", "train.jsonl"), ("validation", "test.jsonl")):
        found = files_of([tmp_path], role)  # type: ignore[arg-type]
        assert found == [tmp_path / n / file for n in ("harmless-base", "helpful-base")]


def test_no_folder_is_left_behind_by_a_broken_row(tmp_path: Path) -> None:
    file = write(tmp_path / "train.jsonl", [*sums(0, 3), {"question": "?"}])
    with pytest.raises(UserError, match=r"train\.jsonl:4: no key 'answer'"):
        prepare(Options("gsm8k", (file,), tmp_path / "out"))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["train.jsonl"]


def test_nothing_there_says_what_could_be_given(tmp_path: Path) -> None:
    failed = alignctl("prepare", "hh", tmp_path / "hh.jsonl", "--output", tmp_path / "out")
    assert failed.code == 2
    assert "hh.jsonl: no such file or folder" in failed.err
    assert "Anthropic/hh-rlhf" in failed.err


@pytest.mark.parametrize(
    ("stage", "kind", "expected"),
    [
        ("sft", "sft", "[[ It is 1.\\n\n#### 1</s>]]"),
        ("grpo", "math", "reference answer: 1 (math_rule)"),
    ],
)
def test_check_shows_what_a_stage_would_read(
    tmp_path: Path, stage: str, kind: str, expected: str
) -> None:
    file = write(tmp_path / "in/train.jsonl", sums(0, 40))
    done = alignctl("prepare", "gsm8k", file, "--output", tmp_path / "out", "--dev-fraction", 0)
    assert done.code == 0, done.text
    assert "40 rows; 40 to train on, 0 held out" in done.err
    flags = ("--tokenizer", write_tokenizer(tmp_path / "tok"), "--preset")
    preset = write_preset(tmp_path / "preset.yaml") if stage == "sft" else "tiny-llama"
    checked = alignctl("prepare", "check", stage, tmp_path / "out" / kind, *flags, preset)
    assert checked.code == 0, checked.text
    assert "data: 40 rows" in checked.out
    assert expected in checked.out


def test_check_shows_a_blend_in_the_place_of_a_path(tmp_path: Path) -> None:
    for name, count in (("a", 30), ("b", 10)):
        write(
            tmp_path / f"{name}.jsonl", [{"prompt": "1", "response": f" {n}"} for n in range(count)]
        )
    blend = f"data.blend={{{tmp_path / 'a.jsonl'}: 1, {tmp_path / 'b.jsonl'}: 1}}"
    flags = ("--tokenizer", write_tokenizer(tmp_path / "tok"), "--preset", "tiny-llama")
    knobs = ("data.packing=step", "data.validation_fraction=0")
    checked = alignctl("prepare", "check", "sft", blend, *flags, *knobs)
    assert checked.code == 0, checked.text
    assert f"{tmp_path / 'b.jsonl'} 50.0 % (2.00 times 10 rows)" in checked.out


def test_check_names_what_the_stage_would_refuse(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [{"prompt": "a", "response": ["b"]}])
    flags = ("--tokenizer", write_tokenizer(tmp_path / "tok"), "--preset", "tiny-llama")
    failed = alignctl("prepare", "check", "sft", file, *flags)
    assert failed.code == 2
    assert "rows.jsonl:1: response is a list, where text is expected" in failed.err
    assert failed.out == ""
