"""The chain by convention: the README's seven commands, each with a preset alone."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from tests import commands, tiny, tiny_on_policy

README = Path(__file__).parents[2] / "README.md"


def script() -> list[list[str]]:
    """The lines of the README that name a preset and nothing else."""
    lines = re.findall(r"^alignctl [a-z0-9 -]+ --preset llama2-7b$", README.read_text(), re.M)
    return [shlex.split(line.replace("llama2-7b", "tiny.yaml")) for line in lines]


@pytest.mark.ci
@pytest.mark.timeout(600)
def test_the_seven_lines_of_the_readme_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_on_policy.write(tmp_path)
    Path("models").mkdir()
    Path("hf").rename("models/tiny")
    tree = yaml.safe_load(Path("tiny.yaml").read_text()) | {"convert": {"tp": 2}}
    shorter = {"batch": {"micro_batch_size": 1, "global_batch_size": 4, "seq_length": 64}}
    tree |= {stage: tiny.preset()[stage] | shorter for stage in ("sft", "reward")}
    tree["rlhf"]["train"]["steps"] = 1
    Path("tiny.yaml").write_text(json.dumps(tree))  # YAML too, without anchors
    turns = [f"\n\nHuman: {a} + 3?\n\nAssistant: " for a in range(24)]
    pairs = [{"chosen": turn + "yes", "rejected": turn + "no"} for turn in turns]
    tiny.write_rows(Path("rows.jsonl"), pairs)
    commands.alignctl("prepare", "hh", "rows.jsonl", "--output", "data/hh", "--dev-fraction", 0.3)

    lines = script()
    assert len(lines) == 7
    for words in lines:
        done = commands.alignctl(*words[1:])
        assert done.code == 0, f"{words}: {done.text}"
        assert "by its name" in done.err

    policy = json.loads(Path("runs/tiny-rlhf/config.json").read_text())
    assert policy["load"] == "runs/tiny-sft"
    assert policy["reward_load"] == "runs/tiny-reward"
    assert policy["data"]["train"] == "data/hh/alignment"
    assert Path("models/tiny-rlhf/model.safetensors").is_file()
    answers = Path("answers/tiny.jsonl").read_text().splitlines()
    assert len(answers) == len(Path("data/hh/alignment/dev.jsonl").read_text().splitlines())
    result = json.loads(Path("answers/tiny-preference/result.json").read_text())
    assert result["settings"]["models"] == ["models/tiny-rlhf"]
    assert result["settings"]["baseline"] == "runs/tiny-sft"
