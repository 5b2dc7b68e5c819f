"""How far runs go with their data, as a reader is told."""

from pathlib import Path

import pytest

from alignctl.config.on_policy_run import OnPolicyConfig
from alignctl.config.presets.load import STAGES, resolve
from alignctl.config.run import SFTConfig, TrainingConfig
from alignctl.data.preference_store import PreferenceSplitSummary, PreferenceSummary
from alignctl.data.prompt_store import PromptSummary
from alignctl.data.store import SplitSummary, Summary
from alignctl.stages.shared import course
from tests import commands, tiny


def config_of(stage: str, *overrides: str) -> TrainingConfig:
    return resolve(STAGES[stage], "llama2-7b", {"output": Path("runs")}, overrides)


def documents(*, sequences: int) -> Summary:
    """96,000 rows of 40 learned tokens and of 176 in all."""
    train = SplitSummary(96_000, sequences, 176 * 96_000, 40 * 96_000, 1.0)
    return Summary(96_000, 0, 0, 0, 0, ("train.jsonl",), train, None)


def preferences() -> PreferenceSummary:
    """96,000 prompts of two answers of 40 tokens each."""
    train = PreferenceSplitSummary(96_000, 192_000, 96_000, 352 * 96_000, 80 * 96_000)
    return PreferenceSummary(96_000, 0, 0, {}, ("train.jsonl",), train, None)


@pytest.mark.parametrize("packing", ["none", "step"])
def test_a_batch_of_rows_learns_as_many_tokens_as_rows_have(packing: str) -> None:
    """1000 x 128 / 96000 = 1.33 passes, and 128 x 40 tokens a step."""
    config = config_of("sft", f"data.packing={packing}")
    assert isinstance(config, SFTConfig)
    found = course.of_documents(config, documents(sequences=96_000))
    assert str(found) == (
        "course: 1,000 steps of 128 rows, 1.33 passes over 96,000; 5,120 tokens learned in each"
    )


def test_a_batch_of_full_sequences_learns_more() -> None:
    """2048 / 176 = 11.6 rows in a sequence: 96000 / 8250 = 11.6 times as much of both."""
    config = config_of("sft", "data.packing=all")
    assert isinstance(config, SFTConfig)
    found = course.of_documents(config, documents(sequences=8250))
    assert str(found) == (
        "course: 1,000 steps of 1,489.5 rows, 15.52 passes over 96,000; 59,578 tokens learned in "
        "each"
    )


def test_of_a_blend_steps_learn_what_its_shares_have() -> None:
    """Of 100 sequences in a pass 75 are of four rows of 10 learned tokens, 25 of a row of 50.

    That is 0.75 x 4 + 0.25 = 3.25 rows, and 0.75 x 40 + 0.25 x 50 = 42.5 tokens; 128 in a step.
    """
    config = config_of("sft", "data.packing=all", "data.blend={a.jsonl: 3, b: 1}")
    assert isinstance(config, SFTConfig)
    a, b = SplitSummary(100, 25, 2000, 1000, 1.0), SplitSummary(75, 75, 5000, 3750, 1.0)
    whole = SplitSummary(175, 100, 7000, 4750, 1.0)
    summary = Summary(175, 0, 0, 0, 0, ("a.jsonl", "b/train.jsonl"), whole, None, sources=(a, b))
    assert str(course.of_documents(config, summary)) == (
        "course: 1,000 steps of 416 rows, 2377.14 passes over 175; 5,440 tokens learned in each"
    )
    sizes = [(25, 100), (75, 75)]
    assert list(course.describe_blend(config.data.weights, sizes)) == [
        "blend: a pass takes a.jsonl 75.0 % (3.00 times 100 rows), b 25.0 % (0.33 times 75 rows)"
    ]
    assert list(course.describe_blend(config.data.weights, [])) == []


def test_epochs_are_passes() -> None:
    """1.5 x 96000 / 128 = 1125 steps."""
    config = config_of("sft", "train.steps=null", "train.epochs=1.5")
    assert isinstance(config, SFTConfig)
    found = course.of_documents(config, documents(sequences=96_000))
    assert (found.steps, found.passes) == (1125, 1.5)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        # 2 x 128 answers get a score; 1000 x 128 / 96000 = 1.33
        ("reward", "1,000 steps of 128 rows, 1.33 passes over 96,000; 256 answers scored in each"),
        # 80 x 128 tokens; 1600 x 128 / 96000 = 2.13
        ("dpo", "1,600 steps of 128 rows, 2.13 passes over 96,000; 10,240 tokens learned in each"),
    ],
)
def test_preferences_are_counted_by_their_prompts(stage: str, expected: str) -> None:
    assert str(course.of_preferences(config_of(stage), preferences())) == f"course: {expected}"


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("rlhf", "200 steps of 1,024 rows, 2.13 passes"),
        ("online_dpo", "200 steps of 128 rows, 0.27 passes"),
        ("grpo", "200 steps of 128 rows, 0.27 passes"),
    ],
)
def test_episodes_are_counted_by_their_prompts(stage: str, expected: str) -> None:
    """Of 1024 answers in all, in eight updates; 200 x 1024 / 96000 = 2.13, an eighth is 0.27."""
    config = config_of(stage)
    assert isinstance(config, OnPolicyConfig)
    summary = PromptSummary(96_000, 0, 0, 0, 512, (), ("train.jsonl",), 96_000, 1, 0)
    assert str(course.of_prompts(config, summary)) == (
        f"course: {expected} over 96,000; 128 answers learned from in each of 8 updates a step"
    )


def test_without_data_a_preset_says_what_a_run_takes(tmp_path: Path) -> None:
    shown = commands.alignctl("presets", "show", "llama2-7b")
    assert shown.code == 0, shown.text
    assert "sft: 1,000 steps of 128 rows, 128,000 in all" in shown.err
    assert "pretrain: 762 steps of 131,072 tokens, 99,876,864 in all" in shown.err
    overrides = ("train.steps=null", "train.epochs=2", "data.packing=all")
    shown = commands.alignctl("presets", "show", tiny.write_preset(tmp_path / "p.yaml"), *overrides)
    assert "sft: 2 passes in steps of 4 packed sequences of 64 tokens" in shown.err


def test_with_data_a_preset_says_both_figures(tmp_path: Path) -> None:
    """40 sums: 4 x 4 / 40 = 0.40 passes."""
    sft = tiny.preset()["sft"] | {"data": {"packing": "step"}}
    preset = tiny.write_preset(tmp_path / "p.yaml", sft=sft)
    rows, tokenizer = tiny.write_rows(tmp_path / "r.jsonl"), tiny.write_tokenizer(tmp_path / "tok")
    flags = ("sft", "--data", rows, "--tokenizer", tokenizer)
    shown = commands.alignctl("presets", "show", preset, *flags)
    assert shown.code == 0, shown.text
    assert "course: 4 steps of 4 rows, 0.40 passes over 40;" in shown.err
    assert "tokens learned in each" in shown.err
    assert "course" not in shown.out


def test_figures_need_rows_a_stage_and_a_tokenizer(tmp_path: Path) -> None:
    failed = commands.alignctl("presets", "show", "tiny-llama", "--data", tmp_path / "r.jsonl")
    assert failed.code == 2
    assert "1 of STAGE, --data and --tokenizer given" in failed.err
