import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from alignctl.config.presets import library as presets
from alignctl.config.presets.load import STAGES, convert_options, load_preset, resolve
from alignctl.config.presets.render import render_preset
from alignctl.config.run import SFTConfig
from alignctl.config.sections import Lora
from alignctl.errors import UserError
from tests import tiny

OUTPUT = {"output": Path("runs/x")}


def refused(
    *overrides: str, preset: str = "tiny-llama", flags: dict[str, object] | None = None
) -> str:
    """The message of the error that these overrides cause."""
    with pytest.raises(UserError) as caught:
        resolve(SFTConfig, preset, {**OUTPUT, **(flags or {})}, overrides)
    assert caught.value.exit_code == 2
    return caught.value.message


MINE = """\
model:
  family: llama2
  num_layers: 2
  hidden_size: 128
  num_attention_heads: 4
  num_query_groups: 4
  ffn_hidden_size: 352
  vocab_size: 512
  max_position_embeddings: 256
  rotary_base: 10000.0
  tie_embeddings: false

sft:
  precision: fp32
  parallel:
    tp: 2
  launch:
    nproc_per_node: 2
  batch:
    micro_batch_size: 8
    global_batch_size: 16
    seq_length: 128
  optimizer:
    lr: 3.0e-3
    min_lr: 2.0e-4
    warmup_fraction: 0.1 # 20 steps
  train:
    steps: 200
"""


@pytest.fixture
def preset_file(tmp_path: Path) -> Path:
    """A preset that extends nothing."""
    file = tmp_path / "mine.yaml"
    file.write_text(MINE)
    return file


def edit(file: Path, old: str, new: str) -> int:
    """Replace one line's text; returns the number of that line."""
    text = file.read_text()
    assert text.count(old) == 1, old
    file.write_text(text.replace(old, new))
    return text[: text.index(old)].count("\n") + 1


def test_overrides_win_over_flags_and_flags_over_the_preset() -> None:
    flags = {**OUTPUT, "launch.nproc_per_node": 4, "data.train": Path("a.jsonl")}
    config = resolve(SFTConfig, "tiny-llama", flags, ["data.train=b.jsonl", "optimizer.lr=0.5"])
    assert config.launch.nproc_per_node == 4
    assert config.data.train == Path("b.jsonl")
    assert config.optimizer.lr == 0.5


def test_a_flag_that_was_not_given_changes_nothing() -> None:
    flags = {**OUTPUT, "launch.nproc_per_node": None, "load": None}
    assert resolve(SFTConfig, "tiny-llama", flags) == resolve(SFTConfig, "tiny-llama", OUTPUT)


def test_the_resolved_config_survives_json() -> None:
    for name in presets.names():
        for stage in STAGES.values():
            config = resolve(stage, name, {**OUTPUT, "data.train": Path("rows.jsonl")})
            assert stage.model_validate_json(config.model_dump_json()) == config


@given(lr=st.floats(2e-4, 1.0), steps=st.integers(21, 10**9), fraction=st.floats(0, 0.99))
def test_any_number_given_as_an_override_arrives_exactly(
    lr: float, steps: int, fraction: float
) -> None:
    config = resolve(
        SFTConfig,
        "tiny-llama",
        OUTPUT,
        [f"optimizer.lr={lr!r}", f"train.steps={steps}", f"data.validation_fraction={fraction!r}"],
    )
    assert (config.optimizer.lr, config.train.steps) == (lr, steps)
    assert config.data.validation_fraction == fraction
    assert SFTConfig.model_validate_json(config.model_dump_json()) == config


def test_a_misspelt_key_in_a_file_names_the_line_and_the_nearest_key(preset_file: Path) -> None:
    line = edit(preset_file, "  optimizer:\n    lr:", "  optimzer:\n    lr:")
    message = refused(preset=str(preset_file))
    assert f"{preset_file}:{line}: unknown key 'optimzer'; did you mean 'optimizer'?" in message


def test_a_misspelt_key_inside_of_a_section_is_named_with_its_section(preset_file: Path) -> None:
    line = edit(preset_file, "    warmup_fraction: 0.1 # 20", "    warmup_fractoin: 0.1 # 20")
    assert refused(preset=str(preset_file)) == (
        f"{preset_file}:{line}: unknown key 'optimizer.warmup_fractoin'; "
        "did you mean 'optimizer.warmup_fraction'?"
    )


def test_a_misspelt_stage_is_named(preset_file: Path) -> None:
    line = edit(preset_file, "\nsft:", "\nsftt:") + 1
    expected = f"{preset_file}:{line}: unknown key 'sftt'; did you mean 'sft'?"
    assert refused(preset=str(preset_file)) == expected
    with pytest.raises(UserError) as caught:
        load_preset(str(preset_file))
    assert caught.value.message == expected


def test_a_preset_without_the_stage_says_so(preset_file: Path) -> None:
    text = preset_file.read_text()
    preset_file.write_text(text[: text.index("\nsft:")])
    assert "has no section 'sft'" in refused(preset=str(preset_file))
    assert load_preset(str(preset_file)).sft is None


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("optimzer.lr=1", "unknown key 'optimzer.lr'; did you mean 'optimizer.lr'?"),
        ("lr=1", "unknown key 'lr'; did you mean 'optimizer.lr'?"),
        ("sft.optimizer.lr=1", "keys are relative to the stage; did you mean 'optimizer.lr=1'?"),
        ("optimizer.lr", "is not of the form section.key=value"),
        ("optimizer.lr=", "has no value (write null to unset a key)"),
        ("optimizer={lr: 1}", "is a mapping (set one key at a time: section.key=value)"),
        ("optimizer=1", "optimizer must be a section of keys; found 1"),
        ("optimizer.lr=fast", "optimizer.lr must be a number; found 'fast'"),
        ("optimizer.lr=0", "optimizer.lr must be greater than 0; found 0"),
        ("optimizer.lr=.inf", "optimizer.lr must be a finite number; found inf"),
        ("optimizer.beta1=1.0", "optimizer.beta1 must be less than 1; found 1.0"),
        ("batch.seq_length=1.5", "batch.seq_length must be an integer; found 1.5"),
        ("batch.seq_length='64'", "batch.seq_length must be an integer; found '64'"),
        ("batch.seq_length=true", "batch.seq_length must be an integer; found true"),
        ("data.packing=yes", "data.packing must be one of none, step, all; found 'yes'"),
        ("lora.rank=true", "lora.rank must be an integer; found true"),
        ("parallel.sequence_parallel=yes", "must be true or false; found 'yes'"),
        ("precision=fp23", "must be one of fp32, bf16, fp16; found 'fp23'; did you mean 'fp32'?"),
        ("stage=sft", "stage is not a knob"),
        ("data.train=[1", "not valid YAML"),
    ],
)
def test_a_wrong_override_is_quoted_with_what_is_wrong(override: str, problem: str) -> None:
    message = refused(override)
    assert message.startswith(f"override {override!r}")
    assert problem in message


def test_all_problems_are_listed_at_once(preset_file: Path) -> None:
    first = edit(preset_file, "hidden_size: 128", "hidden_size: wide")
    second = edit(preset_file, "precision: fp32", "precision: fp8")
    message = refused("optimizer.lrr=1", preset=str(preset_file))
    lines = message.splitlines()
    assert lines[0] == "3 problems:"
    assert "override 'optimizer.lrr=1'" in lines[1]
    assert f"{preset_file}:{second}:" in message
    assert f"{preset_file}:{first}:" in message


def test_a_missing_key_names_the_section_it_belongs_in(preset_file: Path) -> None:
    section = edit(preset_file, "  batch:\n", "  batch:\n")
    edit(preset_file, "    seq_length: 128\n", "")
    expected = f"{preset_file}:{section}: key 'batch.seq_length' is missing"
    assert refused(preset=str(preset_file)) == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], 20),
        (["train.steps=10"], 1),
        (["train.steps=1"], 0),
        (["optimizer.warmup_steps=5"], 5),
        (["optimizer.warmup_steps=0"], 0),
        (["optimizer.warmup_fraction=0.29", "train.steps=100"], 29),
        (["optimizer.warmup_fraction=0.29", "optimizer.decay_steps=50"], 14),
        (["optimizer.warmup_fraction=null"], 0),
    ],
)
def test_the_knob_that_is_typed_says_how_long_the_warm_up_is(
    overrides: list[str], expected: int
) -> None:
    """The preset has 0.1 of 200 steps. Shares are rounded down: 0.29 of 50 are 14.5."""
    config = resolve(SFTConfig, "tiny-llama", OUTPUT, overrides)
    assert config.train.steps is not None
    assert config.optimizer.warmup(config.train.steps) == expected


def test_a_share_that_is_typed_takes_the_place_of_a_presets_steps(preset_file: Path) -> None:
    edit(preset_file, "    warmup_fraction: 0.1 # 20 steps", "    warmup_steps: 20")
    preset = str(preset_file)
    assert resolve(SFTConfig, preset, OUTPUT).optimizer.warmup_steps == 20
    found = resolve(SFTConfig, preset, OUTPUT, ["optimizer.warmup_fraction=0.05"]).optimizer
    assert (found.warmup_steps, found.warmup_fraction, found.warmup(200)) == (None, 0.05, 10)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            ["parallel.tp=3", "launch.nproc_per_node=3"],
            "model.num_attention_heads 4 is not divisible by parallel.tp 3",
        ),
        (["parallel.pp=3"], "model.num_layers 2 is not divisible by parallel.pp 3"),
        (
            ["launch.nproc_per_node=3"],
            "3 processes (launch.nproc_per_node 3 x launch.nnodes 1) are not a multiple of "
            "parallel.tp 2 x parallel.pp 1 = 2",
        ),
        (
            ["launch.nnodes=2", "batch.global_batch_size=24"],
            "batch.global_batch_size 24 is not divisible by batch.micro_batch_size 8 x 2 "
            "data-parallel ranks = 16",
        ),
        (
            ["batch.seq_length=512"],
            "batch.seq_length 512 exceeds model.max_position_embeddings 256",
        ),
        (["train.epochs=2"], "both of train.steps and train.epochs set"),
        (["train.steps=null"], "neither of train.steps and train.epochs set"),
        (
            ["train.steps=10", "optimizer.warmup_steps=20"],
            "optimizer.warmup_steps 20 is not less than train.steps 10: lower it, or give a share "
            "of the steps in its place, such as optimizer.warmup_fraction=0.1",
        ),
        (
            ["optimizer.decay_steps=20", "optimizer.warmup_steps=20"],
            "warmup_steps 20 is not less than optimizer.decay_steps 20: lower it, or",
        ),
        (
            ["optimizer.warmup_steps=2", "optimizer.warmup_fraction=0.1"],
            "optimizer.warmup_steps 2 and optimizer.warmup_fraction 0.1: give one (null unsets)",
        ),
        (["optimizer.warmup_fraction=1.0"], "optimizer.warmup_fraction must be less than 1"),
        (["optimizer.lr=1e-5"], "optimizer.min_lr 0.0002 exceeds optimizer.lr 1e-05"),
    ],
)
def test_sections_that_disagree_are_refused_with_the_numbers(
    overrides: list[str], problem: str
) -> None:
    message = refused(*overrides)
    assert problem in message
    assert "override" in message


def test_a_flag_is_blamed_by_its_name() -> None:
    assert refused(flags={"launch.nproc_per_node": 3}).startswith("--nproc 3: 3 processes")


def test_a_rule_broken_inside_of_a_file_names_the_line(preset_file: Path) -> None:
    line = edit(preset_file, "num_attention_heads: 4", "num_attention_heads: 3")
    message = refused(preset=str(preset_file))
    assert f"{preset_file}:{line - 1}: hidden_size 128 is not divisible by" in message


def test_the_problems_of_all_stages_are_told_together(tmp_path: Path) -> None:
    """Rules of some stages and a bound of another: none hides the others."""
    tree: dict[str, Any] = {"extends": "tiny-llama"}
    tree["sft"] = {"batch": {"seq_length": 512}}
    tree["reward"] = {"train": {"seed": 2**64}}
    tree["dpo"] = {"batch": {"global_batch_size": 7}}
    tree["grpo"] = {"rollout": {"temperature": 0}}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError) as caught:
        load_preset(str(file))
    first, *lines = caught.value.message.splitlines()
    assert first == f"{len(lines)} problems:"
    for problem in (
        "reward.train.seed must be at most",
        "batch.seq_length 512 exceeds",
        "batch.global_batch_size 7 is not divisible",
        "rollout.temperature 0: every answer would be the likeliest one",
    ):
        assert sum(problem in line for line in lines) == 1, lines


def test_an_unknown_preset_names_the_nearest_and_lists_all() -> None:
    with pytest.raises(UserError) as caught:
        load_preset("lama2-7b")
    assert caught.value.message == "there is no preset 'lama2-7b' (did you mean llama2-7b?)"
    assert caught.value.hint is not None
    assert all(name in caught.value.hint for name in presets.names())


def test_a_rendered_preset_is_a_preset_that_means_the_same(tmp_path: Path) -> None:
    file = tmp_path / "rendered.yaml"
    file.write_text(render_preset("tiny-bloom", ["optimizer.clip_grad=null"]))
    assert yaml.safe_load(file.read_text())["sft"]["optimizer"]["clip_grad"] is None
    ours, original = load_preset(str(file)), load_preset("tiny-bloom")
    assert (ours.model, ours.convert) == (original.model, original.convert)
    as_json = json.loads(render_preset("tiny-bloom", [], as_json=True))
    assert as_json["sft"]["optimizer"]["clip_grad"] == 1.0


def test_an_override_is_shown_in_every_stage_that_has_the_knob() -> None:
    shown = yaml.safe_load(render_preset("tiny-llama", ["loss.beta=0.5", "optimizer.lr=1"]))
    assert shown["dpo"]["loss"]["beta"] == 0.5
    assert "beta" not in shown["reward"]["loss"]
    assert {shown[stage]["optimizer"]["lr"] for stage in STAGES if shown[stage]} == {1}
    with pytest.raises(UserError, match=r"unknown key 'loss\.betta'"):
        render_preset("tiny-llama", ["loss.betta=0.5"])


def test_a_conversion_takes_its_layout_from_flags_then_from_the_preset() -> None:
    paths: dict[str, Any] = {"load": Path("a"), "save": Path("b")}
    assert convert_options("llama2-70b", pp=2, **paths).model_dump(include={"tp", "pp"}) == {
        "tp": 8,
        "pp": 2,
    }
    without = convert_options(None, **paths)
    assert (without.tp, without.pp, without.model) == (1, 1, None)
    with pytest.raises(UserError, match="num_attention_heads 32 is not divisible by --tp 3"):
        convert_options("llama2-7b", tp=3, **paths)


def test_an_override_turns_on_a_section_that_a_preset_has_off(tmp_path: Path) -> None:
    """`lora: null` is what `presets show` prints."""
    tree = tiny.preset()
    tree["sft"]["lora"] = None
    file = tiny.write_preset(tmp_path / "tiny.yaml", sft=tree["sft"])
    config = resolve(SFTConfig, str(file), {"output": Path("run")}, ["lora.rank=4"])
    assert config.lora == Lora(rank=4)


def test_a_run_of_an_older_alignctl_has_the_defaults_of_what_it_did_not_know() -> None:
    """What it did know stays, and what is no configuration of today's is left as it is."""
    config = resolve(SFTConfig, "tiny-llama", {"output": "runs/x"})
    recorded = config.model_dump(mode="json")
    del recorded["extra_vocab_size"], recorded["optimizer"]["beta1"]
    recorded["train"]["seed"] = 7
    changed = {**recorded["train"], "seed": 7}
    assert config.complete(recorded) == {**config.model_dump(mode="json"), "train": changed}
    assert config.complete({"stage": "sft", "gone": 1}) == {"stage": "sft", "gone": 1}
