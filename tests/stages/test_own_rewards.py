"""Runs whose rewards are the user's own: a rule, functions and a server, resumed and changed."""

import json
import shutil
from pathlib import Path

import pytest

from tests import commands
from tests import tiny_on_policy as tiny
from tests.rewards.reward_server import fail_every_tenth, serving

pytestmark = [pytest.mark.ci, pytest.mark.timeout(600)]

MODULE = '''
def score(prompt, completion, row):
    """Digits of an answer; one to a prompt of an odd level raises now and then."""
    if row["level"] % 2 and len(completion) % 5 == 0:
        raise ValueError("odd")
    return {"score": sum(each.isdigit() for each in completion) / 10, "level": row["level"]}


def many(prompts, completions, rows):
    return [-len(completion) / 50 for completion in completions]
'''


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.write(tmp_path_factory.mktemp("own"))
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    text = "".join(json.dumps(row | {"level": n}) + "\n" for n, row in enumerate(rows))
    (folder / "prompts.jsonl").write_text(text)
    (folder / "my_reward.py").write_text(MODULE)
    return folder


def run(stage: str, inputs: Path, output: Path, functions: str, *knobs: str) -> commands.Outcome:
    words = tiny.command(stage, inputs, output, f"score.functions={functions}", *knobs)
    if "score.source=sparse_only" in knobs or "score.source=functions" in knobs:
        at = words.index("--reward-load")
        del words[at : at + 2]
    return commands.alignctl(*words)


def test_grpo_with_a_rule_a_function_and_a_server_that_fails(inputs: Path, tmp_path: Path) -> None:
    """One request in ten fails and is asked again; the run goes on from its second episode.

    The same scores come of it as without an interruption, to the last bit.
    """
    file = inputs / "my_reward.py"
    with serving(fail_every_tenth) as served:
        functions = (
            f"[{{file: {file}, weight: 0.5, label: digits}},"
            f" {{file: {file}, name: many, batched: true, label: brevity}},"
            f' {{url: "{served.url}", name: judge, weight: 3.0}}]'
        )
        knobs = ("score.source=sparse_only", "checkpoint.save_interval=1")
        whole = tmp_path / "whole"
        outcome = run("grpo", inputs, whole, functions, *knobs)
        assert outcome.code == 0, outcome.text
        assert "keys that are not read" not in outcome.text, "a reward may read any of them"
        part = tmp_path / "part"
        shutil.copytree(whole, part)
        shutil.rmtree(part / "checkpoints/iter_0000003")
        (part / "checkpoints/latest_checkpointed_iteration.txt").write_text("2")
        (part / "result.json").unlink()
        (part / "samples/episode_0000003.jsonl").unlink()
        outcome = run("grpo", inputs, part, functions, *knobs)
        assert outcome.code == 0, outcome.text
    assert served.requests[0].keys() == {"prompts", "completions", "rows"}
    assert served.requests[0]["rows"][0].keys() == {"prompt", "answer", "eval_func", "level"}
    for kind in ("train", "validation"):
        rows = tiny.rows(whole, kind)
        resumed = [
            {name: value for name, value in row.items() if not name.endswith("_retried")}
            for row in tiny.rows(part, kind)
        ]
        assert resumed == [
            {name: value for name, value in row.items() if not name.endswith("_retried")}
            for row in rows
        ]
        for row in rows:
            labels = ("rule", "digits", "brevity", "judge")
            if kind == "train":  # greedy answers to four prompts may all be alike
                shares = [row[f"reward_{each}_share"] for each in labels]
                assert sum(shares) == pytest.approx(1)
            assert row["reward_judge_failed"] == row["reward_brevity_failed"] == 0
    for episode in range(1, tiny.EPISODES + 1):
        samples = tiny.samples(whole, episode)
        assert samples == tiny.samples(part, episode)
        assert all(sample["rewards"]["judge"] is not None for sample in samples)
        failed = [sample for sample in samples if sample["rewards"]["digits"] is None]
        row = tiny.rows(whole, "train")[episode - 1]
        assert len(failed) == row["reward_digits_failed"]
        assert all(s["failures"]["digits"].endswith("ValueError: odd") for s in failed)
    assert (whole / "rewards/digits.py").read_text() == MODULE


@pytest.mark.parametrize("stage", ["rlhf", "online-dpo"])
def test_other_stages_take_them_beside_a_reward_model(
    stage: str, inputs: Path, tmp_path: Path
) -> None:
    functions = f"[{{file: {inputs / 'my_reward.py'}, name: many, batched: true}}]"
    outcome = run(stage, inputs, tmp_path / "run", functions, "train.steps=1")
    assert outcome.code == 0, outcome.text
    [row] = tiny.rows(tmp_path / "run", "train")
    assert row["reward_many_share"] + row["reward_model_share"] == pytest.approx(1)
    for sample in tiny.samples(tmp_path / "run", 1):
        assert sample["rewards"]["model"] == sample["model_score"]


def test_a_file_that_changes_while_a_run_goes_on_is_refused(inputs: Path, tmp_path: Path) -> None:
    """And a reward that fails for every answer ends a run with the row and what it said."""
    file = tmp_path / "my_reward.py"
    file.write_text("def score(p, c, row):\n    return float(len(c))\n")
    functions, knobs = f"[{{file: {file}}}]", ("score.source=functions", "train.steps=2")
    output = tmp_path / "run"
    outcome = run("grpo", inputs, output, functions, *knobs, "checkpoint.save_interval=1")
    assert outcome.code == 0, outcome.text
    (output / "result.json").unlink()
    shutil.rmtree(output / "checkpoints/iter_0000002")
    (output / "checkpoints/latest_checkpointed_iteration.txt").write_text("1")
    file.write_text("def score(p, c, row):\n    return None\n")
    outcome = run("grpo", inputs, output, functions, *knobs, "checkpoint.save_interval=1")
    assert outcome.code == 2
    assert f"{file} has changed since this run was started" in outcome.text
    outcome = run("grpo", inputs, tmp_path / "new", functions, *knobs)
    assert outcome.code == 1
    assert "answers a score; the first is an answer to" in outcome.text
    assert "score is None, where a finite number" in outcome.text
    assert "Traceback" not in outcome.err
