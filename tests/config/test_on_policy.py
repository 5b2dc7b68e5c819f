"""The settings of stages that learn from their own answers, and the rules between them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignctl.config.on_policy_run import GRPOConfig, OnlineDPOConfig, OnPolicyConfig, RLHFConfig
from alignctl.config.presets.load import FLAGS, STAGES, resolve
from alignctl.config.presets.render import render_preset
from alignctl.config.presets.schema import preset_schema
from alignctl.config.stages import section_of
from alignctl.errors import UserError
from tests import tiny

CLASSES: dict[str, type[OnPolicyConfig]] = {
    "rlhf": RLHFConfig,
    "online-dpo": OnlineDPOConfig,
    "grpo": GRPOConfig,
}
ALL = tuple(CLASSES)


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The preset of `tiny.on_policy_preset` as a file."""
    file = tmp_path_factory.mktemp("presets") / "tiny.yaml"
    file.write_text(yaml.safe_dump(tiny.on_policy_preset()), encoding="utf-8")
    return str(file)


def resolved(preset: str, stage: str, *overrides: str, **flags: Any) -> OnPolicyConfig:
    return resolve(CLASSES[stage], preset, {"output": Path("runs/x"), **flags}, overrides)


def refused(preset: str, stage: str, *overrides: str, **flags: Any) -> str:
    """The one thing that is wrong, without where it was written."""
    with pytest.raises(UserError) as caught:
        resolved(preset, stage, *overrides, **flags)
    assert caught.value.exit_code == 2
    assert "problems:" not in caught.value.message, caught.value.message
    culprit, _, rule = caught.value.message.partition(": ")
    named = {f"override {override!r}" for override in overrides} | {
        f"{FLAGS[key]} {value}" for key, value in flags.items()
    }
    assert culprit in named
    return rule


@pytest.mark.parametrize(
    ("stages", "overrides", "rule"),
    [
        (
            ALL,
            ["rollout.max_new_tokens=64", "data.max_prompt_length=8"],
            "data.max_prompt_length 8 + rollout.max_new_tokens 64 = 72 exceed batch.seq_length 70",
        ),
        (
            ALL,
            ["rollout.max_num_batched_tokens=100"],
            "rollout.max_num_batched_tokens 100 is less than rollout.max_num_seqs 256: each "
            "completion takes a token of a pass",
        ),
        (
            ALL,
            ["trust.low=1", "trust.high=1"],
            "trust.low and trust.high are both 1.0: nothing counts",
        ),
        (
            ALL,
            ["score.overlong_buffer=65"],
            "score.overlong_buffer 65 exceeds rollout.max_new_tokens 32",
        ),
        (
            ["grpo"],
            ["score.missing_eos_score=-2"],
            "score.missing_eos_score -2.0 has no effect where no reward model scores, "
            "unless score.missing_eos is replace or add",
        ),
        (
            ["grpo"],
            ["score.source=sparse_only", "score.bias=2"],
            "score.bias 2.0 has no effect with score.source sparse_only: no reward model scores",
        ),
        (
            ["grpo"],
            ["score.source=sparse_only", "score.model_coef=0.5"],
            "score.model_coef 0.5 has no effect with score.source sparse_only: no reward model "
            "scores",
        ),
        (
            ["grpo"],
            ["score.source=sparse_only", "roles.reward.parallel.tp=1"],
            "roles.reward.parallel.tp 1 has no effect: with score.source sparse_only no reward "
            "model scores",
        ),
        (
            ["grpo"],
            ["loss.kl_coef=0", "roles.reference.parallel.pp=1"],
            "roles.reference.parallel.pp 1 has no effect: loss.kl_coef 0 needs no reference",
        ),
        (
            ["rlhf", "online-dpo"],
            ["lora.rank=4", "roles.reference.parallel.tp=1"],
            "roles.reference.parallel.tp 1 has no effect: with lora the reference is the policy "
            "without its adapters",
        ),
        (
            ["rlhf", "online-dpo"],
            ["roles.reward.parallel.tp=3"],
            "2 processes (launch.nproc_per_node 2 x launch.nnodes 1) are not a multiple of "
            "roles.reward.parallel.tp 3 x roles.reward.parallel.pp 1 = 3",
        ),
        (
            ["rlhf"],
            ["batch.micro_batch_size=4", "roles.value.parallel.tp=1"],
            "batch.global_batch_size 4 is not divisible by batch.micro_batch_size 4 x 2 copies of "
            "the value model (roles.value.parallel.tp 1 x roles.value.parallel.pp 1) = 8",
        ),
        (
            ALL,
            ["reward_load_iteration=3"],
            "reward_load_iteration 3 has no effect without reward_load",
        ),
        (
            ALL,
            ["optimizer.warmup_steps=8"],
            "optimizer.warmup_steps 8 is not less than the 8 updates of train.steps 4 episodes: "
            "lower it, or give a share of the steps in its place, such as "
            "optimizer.warmup_fraction=0.1",
        ),
        (
            ALL,
            ["optimizer.min_lr=1"],
            "optimizer.min_lr 1.0 exceeds optimizer.lr 0.001",
        ),
        (
            ["rlhf"],
            ["value.optimizer.min_lr=1"],
            "value.optimizer.min_lr 1.0 exceeds value.optimizer.lr 0.001",
        ),
        (
            ["rlhf"],
            ["value.optimizer.warmup_steps=8"],
            "value.optimizer.warmup_steps 8 is not less than the 8 updates of train.steps 4 "
            "episodes: lower it, or give a share of the steps in its place, such as "
            "value.optimizer.warmup_fraction=0.1",
        ),
        (
            ["rlhf"],
            ["value.warmup_steps=4"],
            "value.warmup_steps 4 is not less than train.steps 4: the policy would learn nothing; "
            "lower it, or give a share of the episodes in its place, such as "
            "value.warmup_fraction=0.1",
        ),
        (
            ["rlhf"],
            ["value.warmup_steps=1", "value.warmup_fraction=0.5"],
            "value.warmup_steps 1 and value.warmup_fraction 0.5: give one (null unsets)",
        ),
        (
            ["rlhf"],
            ["value.clip=null", "value.clipped_only=true"],
            "value.clipped_only has no effect with value.clip null",
        ),
        (
            ["rlhf"],
            ["experience.max_refills=2"],
            "experience.max_refills 2: alignctl rlhf compares no answers with each other; set it "
            "to 0",
        ),
        (
            ["grpo"],
            ["batch.global_batch_size=6"],
            "experience.prompts 4 x experience.samples 2 = 8 answers are not a multiple of "
            "batch.global_batch_size 6",
        ),
        (
            ["online-dpo"],
            ["experience.prompts=6"],
            "experience.prompts 6 are not a multiple of batch.global_batch_size 4",
        ),
        (
            ["grpo", "online-dpo"],
            ["experience.samples=1"],
            "experience.samples 1: alignctl {stage} compares answers to one prompt with each "
            "other; take 2 or more (8 is usual)",
        ),
        (
            ["rlhf", "grpo"],
            ["loss.dual_clip=3", "loss.variant=gspo"],
            "loss.dual_clip 3.0 has no effect with loss.variant gspo",
        ),
        (
            ["online-dpo"],
            ["loss.variant=ipo", "loss.label_smoothing=0.1"],
            "loss.label_smoothing 0.1 has no effect with loss.variant ipo: a squared distance has "
            "no wrong way round; set it to 0",
        ),
    ],
)
def test_settings_that_disagree_are_refused_with_the_numbers(
    preset: str, stages: list[str], overrides: list[str], rule: str
) -> None:
    for stage in stages:
        assert refused(preset, stage, *overrides) == rule.format(stage=stage)


def test_a_reference_that_cannot_be_cut_names_its_own_knobs(preset: str) -> None:
    own = "roles.reference.parallel"
    with pytest.raises(UserError) as caught:
        resolved(preset, "rlhf", "launch.nproc_per_node=12", f"{own}.tp=4", f"{own}.pp=3")
    said = caught.value.message
    assert "model.num_attention_heads 2 is not divisible by roles.reference.parallel.tp 4" in said
    assert "model.num_layers 2 is not divisible by roles.reference.parallel.pp 3" in said
    assert "not divisible by parallel." not in said


def test_only_rlhf_has_a_layout_of_values(preset: str) -> None:
    with pytest.raises(UserError) as caught:
        resolved(preset, "grpo", "roles.value.parallel.tp=1")
    assert "roles.value" in caught.value.message


def test_what_a_role_does_not_say_is_the_policys(preset: str) -> None:
    config = resolved(preset, "rlhf", "roles.reward.parallel.tp=1")
    layouts = {name: model.parallel for name, model in config.models.items()}
    assert [layouts[role] for role in ("reference", "value")] == [config.parallel] * 2
    assert layouts["reward"] == config.parallel.model_copy(update={"tp": 1})
    assert config.copies_of(layouts["reward"]) == 2 * config.data_parallel_size


@pytest.mark.parametrize("stage", ALL)
@pytest.mark.parametrize("dropout", ["attention_dropout", "hidden_dropout"])
def test_nothing_is_dropped_out(preset: str, stage: str, dropout: str) -> None:
    assert refused(preset, stage, f"model.{dropout}=0.1") == (
        f"model.{dropout} 0.1: log-probabilities of answers must not depend on chance while "
        f"alignctl {stage} learns; set model.{dropout} to 0.0"
    )


@pytest.mark.parametrize("stage", ALL)
def test_deepspeed_trains_no_answers_of_its_own(preset: str, stage: str) -> None:
    assert refused(preset, stage, "engine=deepspeed") == (
        f"engine deepspeed: alignctl {stage} trains with megatron; remove engine"
    )


@pytest.mark.parametrize("stage", ALL)
def test_a_completion_leaves_room_for_a_prompt(preset: str, stage: str) -> None:
    """Whatever is too long for one rule may be too long for the next as well."""
    with pytest.raises(UserError) as caught:
        resolved(preset, stage, "rollout.max_new_tokens=70")
    assert (
        "rollout.max_new_tokens 70 is not less than batch.seq_length 70: no room is left for a "
        "prompt"
    ) in caught.value.message


@pytest.mark.parametrize("stage", ALL)
def test_a_sampler_that_cannot_be_cut_names_its_own_knob(preset: str, stage: str) -> None:
    with pytest.raises(UserError) as caught:
        resolved(preset, stage, "rollout.tp=4")
    assert "2 processes are not a multiple of rollout.tp 4" in caught.value.message
    assert "model.num_attention_heads 2 is not divisible by rollout.tp 4" in caught.value.message


def test_what_draws_has_no_effect_where_nothing_is_drawn(preset: str) -> None:
    with pytest.raises(UserError) as caught:
        resolved(preset, "grpo", "rollout.temperature=0", "rollout.top_p=0.5")
    assert "rollout.top_p, top_k and min_p have no effect at rollout.temperature 0" in (
        caught.value.message
    )


@pytest.mark.parametrize("stage", ALL)
def test_a_reward_model_without_a_part_in_scoring_is_refused(preset: str, stage: str) -> None:
    more = ["value.load=v"] if stage == "rlhf" else []
    flags = {"reward_load": Path("r")}
    rule = refused(preset, stage, "score.source=sparse_only", *more, **flags)
    assert rule == (
        "reward_load r has no effect with score.source sparse_only: no reward model scores; "
        "leave it out, or choose merge"
    )


def test_values_have_to_start_from_something(preset: str) -> None:
    with pytest.raises(UserError) as caught:
        resolved(preset, "rlhf", "score.source=sparse_only")
    assert caught.value.message.endswith(
        "value.load is missing: without a reward model there is none to start values from; give a "
        "model folder"
    )
    assert resolved(preset, "rlhf", "score.source=sparse_only", "value.load=v").load is None


def test_a_baseline_over_all_answers_needs_no_groups(preset: str) -> None:
    config = resolved(preset, "grpo", "experience.samples=1", "baseline=reinforce++")
    assert config.samples_per_step == 4


def test_an_episode_is_counted_in_answers_prompts_and_updates(preset: str) -> None:
    """8 answers: 8 prompts of one (rlhf), 4 of two (grpo); 8 prompts of two (online-dpo).

    Batches are of 4 answers, or of 4 prompts; each is seen once, or three times.
    """
    for stage, answers in (("rlhf", 8), ("online-dpo", 16), ("grpo", 8)):
        config = resolved(preset, stage)
        assert (config.samples_per_step, config.updates_per_step) == (answers, 2)
        assert resolved(preset, stage, "experience.epochs=3").updates_per_step == 6


def test_epochs_are_over_prompts_and_end_with_a_whole_episode(preset: str) -> None:
    """1.5 passes over 10 prompts are 15: of 4 an episode, 4 episodes; never none."""
    config = resolved(preset, "grpo", "train.steps=null", "train.epochs=1.5")
    assert config.num_episodes(10) == 4
    assert config.num_episodes(1) == 1
    assert resolved(preset, "grpo").num_episodes(10) == 4


def test_the_stage_has_a_hyphen_and_its_section_does_not(preset: str) -> None:
    assert {stage: section_of(stage) for stage in CLASSES} == {
        "rlhf": "rlhf",
        "online-dpo": "online_dpo",
        "grpo": "grpo",
    }
    for stage, config_class in CLASSES.items():
        assert STAGES[section_of(stage)] is config_class
        assert resolved(preset, stage).stage == stage
    wrong = refused(preset, "online-dpo", "online_dpo.loss.beta=0.2")
    assert wrong == "keys are relative to the stage; did you mean 'loss.beta=0.2'?"


def test_a_preset_without_the_section_names_it_as_the_file_has_it(tmp_path: Path) -> None:
    file = tiny.write_preset(tmp_path / "tiny.yaml")
    with pytest.raises(UserError) as caught:
        resolved(str(file), "online-dpo")
    assert "has no section 'online_dpo', which alignctl online-dpo needs" in caught.value.message


@pytest.mark.parametrize(
    ("stage", "override", "problem"),
    [
        ("grpo", "kl_coef=0.1", "unknown key 'kl_coef'; did you mean 'loss.kl_coef'?"),
        (
            "grpo",
            "rollout.max_new_token=8",
            "unknown key 'rollout.max_new_token'; did you mean 'rollout.max_new_tokens'?",
        ),
        ("rlhf", "loss.kl_coef=0.1", "unknown key 'loss.kl_coef'"),
        ("rlhf", "value.gama=1", "unknown key 'value.gama'; did you mean 'value.gamma'?"),
        ("online-dpo", "penalty.coef=0.1", "unknown key 'penalty.coef'"),
        ("online-dpo", "pair=all", "unknown key 'pair'; did you mean 'pairs'?"),
        (
            "grpo",
            "score.source=dense_ony",
            "score.source must be one of dense_only, sparse_only, merge, functions; found "
            "'dense_ony'; did you mean 'dense_only'?",
        ),
        ("grpo", "rollout.top_p=0", "rollout.top_p must be greater than 0; found 0"),
        ("grpo", "experience.prompts=0", "experience.prompts must be at least 1; found 0"),
    ],
)
def test_a_wrong_override_is_answered_with_the_right_one(
    preset: str, stage: str, override: str, problem: str
) -> None:
    assert refused(preset, stage, override).startswith(problem)


def test_a_knob_of_the_score_leaves_grpo_with_its_rule(preset: str) -> None:
    """Whose preset has no section for it."""
    assert resolved(preset, "grpo", "score.alarm_after=5").score.source == "sparse_only"


def test_overrides_and_flags_reach_the_stage(preset: str) -> None:
    config = resolved(
        preset,
        "rlhf",
        "value.optimizer.lr=0.5",
        "score.missing_eos_score=-2",
        "rollout.top_k=5",
        reward_load=Path("r"),
        reward_load_iteration=7,
    )
    assert isinstance(config, RLHFConfig)
    assert config.value.optimizer.lr == 0.5
    assert config.score.missing_eos_score == -2
    assert (config.rollout.top_k, config.reward_load_iteration) == (5, 7)
    assert RLHFConfig.model_validate_json(config.model_dump_json()) == config


def test_a_preset_is_shown_with_the_defaults_of_each_stage(preset: str) -> None:
    shown = yaml.safe_load(render_preset(preset, ["loss.kl_coef=0.25", "rollout.top_p=0.5"]))
    assert shown["grpo"]["score"]["source"] == "sparse_only"
    assert shown["rlhf"]["score"]["source"] == "dense_only"
    assert shown["grpo"]["loss"]["kl_coef"] == 0.25
    assert "kl_coef" not in shown["rlhf"]["loss"]
    assert {shown[section_of(stage)]["rollout"]["top_p"] for stage in CLASSES} == {0.5}


def test_the_schema_explains_every_knob_of_the_stages() -> None:
    """Every key of every section that is reached from them has a text, or is a section itself."""
    schema: dict[str, Any] = json.loads(preset_schema())
    waiting = ["RLHFSettings", "OnlineDPOSettings", "GRPOSettings"]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for key, knob in schema["$defs"][name]["properties"].items():
            text = json.dumps(knob)
            below = [part.split('"')[0] for part in text.split("#/$defs/")[1:]]
            waiting += below
            assert below or knob["description"].endswith("."), f"{name}.{key}"
    assert {"Rollout", "Experience", "Trust", "Score", "Penalty", "Value", "Clipping"} <= seen


@pytest.mark.parametrize(
    ("stage", "knobs", "fewest"),
    [
        # 32 + 32: the whole of a prompt and an answer, as a reward model reads them.
        ("grpo", (), 64),
        ("rlhf", (), 64),
        ("online-dpo", (), 112),
        ("online-dpo", ("batch.share_prompts=false",), 128),
        ("online-dpo", ("pairs=all", "experience.samples=4"), 188),
    ],
)
def test_a_budget_of_tokens_holds_the_longest_that_is_never_cut(
    preset: str, stage: str, knobs: tuple[str, ...], fewest: int
) -> None:
    """Of k answers that share a prompt: 8/7 of 32 + k x 33, as an eighth is worth sharing."""
    given = f"batch.micro_batch_tokens={fewest}"
    assert resolved(preset, stage, *knobs, given).batch.micro_batch_tokens == fewest
    rule = refused(preset, stage, *knobs, f"batch.micro_batch_tokens={fewest - 1}")
    assert rule.startswith(f"batch.micro_batch_tokens {fewest - 1} is less than the {fewest} that ")
    assert "data.max_prompt_length 32 + rollout.max_new_tokens 32" in rule
    assert rule.endswith(f" may take: give {fewest} or more")


def test_answers_are_not_counted_beside_a_budget_of_tokens(preset: str) -> None:
    """A global batch of 4 could not be dealt to micro batches of 3 on one rank."""
    for key in ("batch.micro_batch_size", "experience.score_batch_size"):
        with pytest.raises(UserError) as caught:
            resolved(preset, "grpo", "batch.micro_batch_tokens=64", f"{key}=3")
        assert caught.value.message == (
            f"override '{key}=3' has no effect beside batch.micro_batch_tokens 64, which takes its "
            "place: leave one out (batch.micro_batch_tokens=null unsets)"
        )


def test_of_a_count_and_a_budget_the_nearer_one_holds(preset: str, tmp_path: Path) -> None:
    """The preset counts, the one that extends it has a budget, and so on."""
    above = tmp_path / "above.yaml"
    above.write_text(f"extends: {preset}\ngrpo: {{batch: {{micro_batch_tokens: 90}}}}\n")
    assert resolved(str(above), "grpo").batch.micro_batch_tokens == 90
    typed = resolved(str(above), "grpo", "batch.micro_batch_size=4").batch
    assert (typed.micro_batch_size, typed.micro_batch_tokens) == (4, None)
    top = tmp_path / "top.yaml"
    top.write_text("extends: above.yaml\ngrpo: {batch: {micro_batch_size: 4}}\n")
    assert resolved(str(top), "grpo").batch == typed
