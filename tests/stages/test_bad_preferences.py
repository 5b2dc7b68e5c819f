"""What users get wrong about preferences is refused in words, before a process is started."""

from pathlib import Path

import pytest

from tests.stages.conftest import Alignctl, refused, snapshot

pytestmark = pytest.mark.ci


def command(stage: str, workspace: Path, *overrides: str, **flags: object) -> list[object]:
    inputs = {"preset": "tiny.yaml", "load": "hf", "data": "pairs.jsonl", "output": "new"}
    named = {name: workspace / file for name, file in inputs.items()} | flags
    words = [word for key, value in named.items() for word in (f"--{key}", value)]
    return [stage, *words, *overrides]


@pytest.mark.parametrize("stage", ["reward", "dpo"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '{"prompt": "a", "chosen": "b", "rejected": "b"}\n',
            ["nothing to compare: 1 rows read", "the same answer twice"],
        ),
        (
            '{"query": "a", "response": ["b", "c"], "score": [1]}\n',
            [":1: response has 2 entries and score has 1", "hint: every response needs one score"],
        ),
        (
            '{"query": "a", "response": ["b", "c"], "score": [1, NaN]}\n',
            [":1: score[1] is nan, which orders no answers"],
        ),
        (
            '{"query": "a", "response": "b"}\n',
            [":1: the keys of this row (query, response)"],
        ),
    ],
)
def test_a_mistake_in_the_rows_is_named(
    alignctl: Alignctl, workspace: Path, tmp_path: Path, stage: str, text: str, words: list[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    before = snapshot(workspace)
    said = refused(alignctl(*command(stage, workspace, data=file)))
    assert said.startswith(f"error: {file}:")
    for word in words:
        assert word in said
    assert snapshot(workspace) == before
    assert not (workspace / "new").exists()


def test_a_prompt_longer_than_the_sequence_is_cut_or_left_out_and_counted(
    alignctl: Alignctl, workspace: Path, tmp_path: Path
) -> None:
    """By default its beginning goes; where whole rows are left out, none remains here."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "%s", "chosen": "b", "rejected": "c"}\n' % ("a" * 200))
    said = refused(alignctl(*command("dpo", workspace, "data.truncation=drop", data=file)))
    assert "nothing to compare: 1 rows read, 1 dropped: too long" in said


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_reward_model_is_no_policy(
    alignctl: Alignctl, workspace: Path, rewarded: Path, stage: str
) -> None:
    said = refused(alignctl(*command(stage, workspace, load=rewarded)))
    assert f"this is a reward model, and alignctl {stage} trains a policy" in said
    assert "hint: give --load the policy that it was made from" in said
    assert not (workspace / "new").exists()


def test_a_policy_is_no_reward_model(
    alignctl: Alignctl, workspace: Path, finished: Path, tmp_path: Path
) -> None:
    said = refused(
        alignctl("convert-mg2hf", "--load", finished, "--save", tmp_path / "x", "--role", "reward")
    )
    assert "--role reward was asked for, but this is a policy model" in said
    assert "hint: alignctl reward makes a reward model of a policy" in said


@pytest.mark.parametrize(
    ("stage", "overrides", "words"),
    [
        (
            "dpo",
            ["loss.variant=ipo", "loss.label_smoothing=0.1"],
            "has no effect with loss.variant ipo",
        ),
        ("dpo", ["loss.beta=0"], "loss.beta must be greater than 0"),
        ("dpo", ["loss.variant=simpo"], "one of sigmoid, sigmoid_norm, ipo"),
        (
            "reward",
            ["data.select=topk"],
            "data.select topk has no effect without data.max_response",
        ),
        ("reward", ["data.max_response=1"], "must be at least 2"),
        ("reward", ["data.packing=false"], "unknown key 'data.packing'"),
        ("reward", ["loss.beta=0.1"], "unknown key 'loss.beta'"),
    ],
)
def test_a_setting_without_effect_or_sense_is_refused(
    alignctl: Alignctl, workspace: Path, stage: str, overrides: list[str], words: str
) -> None:
    assert words in refused(alignctl(*command(stage, workspace, *overrides)))
