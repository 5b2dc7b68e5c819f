from pathlib import Path

import pytest

from alignctl.config.on_policy_run import OnPolicyConfig
from alignctl.config.presets import library as presets
from alignctl.config.presets.load import STAGES, load_preset, resolve
from alignctl.config.run import SFTConfig
from alignctl.config.sections import Model
from alignctl.rollouts.library import CPU_HEAD_DIMS

REAL = [name for name in presets.names() if not name.startswith("tiny")]
TUTORIALS = [name for name in REAL if name.startswith(("llama2-", "bloom-"))]
PUBLIC = [name for name in REAL if name not in TUTORIALS]
"""On the recipe of Tulu 3 and verl."""

# The counts that the models' own pages give, exact to the last parameter.
PARAMETERS = {
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "bloom-560m": 559_214_592,
    "bloom-1b1": 1_065_314_304,
    "bloom-1b7": 1_722_408_960,
    "bloom-3b": 3_002_557_440,
    "bloom-7b": 7_069_016_064,
    "bloom-176b": 176_247_271_424,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.2-1b": 1_235_814_400,
    "mistral-7b": 7_248_023_552,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
}


def count(model: Model) -> int:
    """Parameters of a model.

    Like Llama: per layer the query and output matrices (2 h x heads x head), key and value
    (2 h x groups x head), gate, up and down (3 h f) and two norms; embedding, output layer where it
    is not the same, final norm. Qwen 2 has biases on queries, keys and values; Qwen 3 two norms of
    a head's width.
    Bloom: per layer 4 h^2 + 4 h of attention, 8 h^2 + 5 h of feed-forward, two norms of 2 h; the
    embedding once, its norm and the final one.
    """
    h, f, v = model.hidden_size, model.ffn_hidden_size, model.vocab_size
    if model.family != "bloom":
        q = model.head_width * model.num_attention_heads
        kv = model.head_width * model.num_query_groups
        own = {"qwen2": q + 2 * kv, "qwen3": 2 * model.head_width}.get(model.family, 0)
        layer = 2 * h * q + 2 * h * kv + 3 * h * f + 2 * h + own
        return model.num_layers * layer + (1 if model.tie_embeddings else 2) * v * h + h
    return model.num_layers * (12 * h * h + 13 * h) + v * h + 4 * h


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_is_valid(name: str) -> None:
    preset = load_preset(name)
    assert None not in [getattr(preset, stage) for stage in STAGES]
    assert (preset.model.attention_dropout, preset.model.hidden_dropout) == (0, 0)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", presets.names())
def test_a_short_run_needs_no_other_knob(name: str, stage: str) -> None:
    for steps in (1, 10):
        output = {"output": Path("runs/x"), "reward_load": None}
        config = resolve(STAGES[stage], name, output, [f"train.steps={steps}"])
        assert config.optimizer.warmup_steps is None, "a share, which is shorter in a shorter run"


# What the tutorials' scripts say: warm-up and decay, in optimizer steps.
COURSES = {
    ("llama2", "sft"): (40, 1000),
    ("llama2", "reward"): (300, 1000),
    ("bloom", "sft"): (40, 1000),
    ("bloom", "reward"): (300, 3600),
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", TUTORIALS)
def test_a_whole_run_warms_up_for_as_many_steps_as_in_the_tutorials(name: str, stage: str) -> None:
    """100 of 12,000 where ChatLearn's YAML files say so; of PAI's tokens a tenth."""
    config = resolve(STAGES[stage], name, {"output": Path("runs/x")})
    if stage == "pretrain":
        total = config.total_steps(0)
        assert config.schedule.warmup(total) == total // 10
        return
    warmup, decay = COURSES.get((config.model.family, stage), (100, 12000))
    steps = config.train.steps
    assert steps is not None
    assert config.optimizer.warmup(steps) == warmup
    assert (config.optimizer.decay_steps or steps) == decay


@pytest.mark.parametrize("name", presets.names())
def test_no_reward_model_scores_an_answer_that_was_cut(name: str) -> None:
    """It learned to score at EOS. A rule alone reads what there is."""
    model = {"output": Path("runs/x"), "reward_load": Path("runs/reward")}
    for stage in ("rlhf", "online_dpo"):
        config = resolve(STAGES[stage], name, model)
        assert isinstance(config, OnPolicyConfig)
        assert config.score.missing_eos == config.score.of_cut_answers == "replace"
    merged = resolve(STAGES["grpo"], name, model, ["score.source=merge"])
    alone = resolve(STAGES["grpo"], name, {"output": Path("runs/x")})
    assert isinstance(merged, OnPolicyConfig)
    assert isinstance(alone, OnPolicyConfig)
    assert merged.score.of_cut_answers == "replace"
    assert alone.score.of_cut_answers == "keep"


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_opens_with_a_runbook_of_ascii(name: str) -> None:
    text = (presets.folder() / f"{name}.yaml").read_bytes().decode("ascii")
    header = text[: text.index("\nextends:")]
    assert all(line.startswith("#") for line in header.splitlines() if line)
    stages = ["pretrain", "sft", "reward", "dpo", "rlhf", "online-dpo", "grpo"]
    for command in ["convert-hf2mg", *stages, "convert-mg2hf"]:
        assert f"#   alignctl {command} " in header
    assert max(map(len, text.splitlines())) <= 100


def test_what_presets_have_in_common_is_written_once() -> None:
    """Of 5,792 lines 691 were distinct when each preset said everything.

    Numbers and braces alone do not make a line another one's copy.
    """
    files = [f"{name}.yaml" for name in [*presets.names(), *presets.recipes()]]
    texts = {name: (presets.folder() / name).read_text() for name in files}
    for name, text in texts.items():
        length = len(text.splitlines())
        assert length <= 90 or name.startswith("recipes/"), f"{name} has {length} lines"
    lines = [line for text in texts.values() for line in text.splitlines() if line.strip()]
    assert len(set(lines)) / len(lines) > 0.6


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_the_shapes_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    assert count(load_preset(name).model) == parameters


def test_all_presets_are_there() -> None:
    assert set(presets.names()) == {
        *PARAMETERS,
        "bloom-13b",
        "bloom-70b",
        "tiny-llama",
        "tiny-llama-gqa",
        "tiny-bloom",
        "tiny-llama3",
        "tiny-mistral",
        "tiny-qwen2",
        "tiny-qwen3",
    }


def test_bloom_7b1_is_another_name_of_bloom_7b() -> None:
    assert load_preset("bloom-7b1") == load_preset("bloom-7b")


@pytest.mark.parametrize(
    ("name", "rlhf", "online_dpo"),
    [
        ("llama2-7b", (4, 1, 2, 4), (8, 1, 1, 8)),
        ("llama2-13b", (8, 2, 1, 8), (8, 2, 1, 8)),
        ("llama2-70b", (8, 4, 1, 8), (8, 4, 1, 8)),
        ("bloom-1b1", (4, 1, 2, 4), (4, 1, 2, 4)),
        ("bloom-1b7", (4, 1, 2, 4), (4, 1, 2, 4)),
        ("bloom-7b", (8, 1, 1, 8), (8, 1, 1, 8)),
    ],
)
def test_on_policy_stages_have_the_tutorials_layouts(
    name: str, rlhf: tuple[int, ...], online_dpo: tuple[int, ...]
) -> None:
    """TP, PP and DP of the trainer, TP of the sampler; 8, 16 and 32 GPUs."""
    for stage, layout in (("rlhf", rlhf), ("online_dpo", online_dpo), ("grpo", online_dpo)):
        config = resolve(STAGES[stage], name, {"output": Path("runs")})
        assert isinstance(config, OnPolicyConfig)
        parallel = config.parallel
        found = (parallel.tp, parallel.pp, config.data_parallel_size, config.rollout.tp)
        assert found == layout
        assert config.world_size == {"llama2-13b": 16, "llama2-70b": 32}.get(name, 8)


@pytest.mark.parametrize("name", TUTORIALS)
def test_steps_take_as_many_rows_as_the_tutorials_scripts(name: str) -> None:
    """Upstream's batches count padded rows: 64 of each copy of the model; of DPO 128.

    Steps are 1000 of SFT; of reward models 1000 (Llama 2) or 3600 (Bloom); 200 episodes of 1024
    rows of DPO. The 560M model is ours: its eight copies would make a batch of 512.
    """
    steps = {"sft": 1000, "reward": 1000 if name.startswith("llama2") else 3600, "dpo": 1600}
    for stage, expected in steps.items():
        config = resolve(STAGES[stage], name, {"output": Path("runs")})
        copies = 2 if name == "bloom-560m" else config.data_parallel_size
        rows = 128 if stage == "dpo" else 64 * copies
        assert (config.total_steps(0), config.batch.global_batch_size) == (expected, rows)
        if isinstance(config, SFTConfig):
            assert config.data.packing == "step"


@pytest.mark.parametrize("name", TUTORIALS)
def test_an_episode_is_1024_answers_learned_from_in_eight_updates(name: str) -> None:
    """Upstream's sample_per_episode counts answers, and its batch of 128 counts them too.

    Online DPO's batch counts prompts of eight answers: 16.
    """
    for stage in ("rlhf", "online_dpo", "grpo"):
        config = resolve(STAGES[stage], name, {"output": Path("runs")})
        assert isinstance(config, OnPolicyConfig)
        assert (config.samples_per_step, config.updates_per_step) == (1024, 8)
        assert config.data.max_prompt_length + config.rollout.max_new_tokens == (
            config.batch.seq_length
        )


@pytest.mark.parametrize("name", REAL)
def test_the_memory_of_a_push_fits_into_80_gigabytes(name: str) -> None:
    """While weights are pushed, the sampler has its share, and the policy all of its state.

    Of each weight: 2 bytes, 4 of its gradient, 12 of the optimizer over all copies. Models that do
    not wait elsewhere are there as well: of the value model the same, of frozen ones 2. The
    sampler's weights leave it room for a cache.
    """
    gpu = 80e9 / 2**30
    for stage in ("rlhf", "online_dpo", "grpo"):
        config = resolve(STAGES[stage], name, {"output": Path("runs")})
        assert isinstance(config, OnPolicyConfig)
        weights = count(config.model) / (config.parallel.tp * config.parallel.pp) / 2**30
        learned = (6 + 12 / config.data_parallel_size) * weights
        others = {"rlhf": learned + 4 * weights, "online_dpo": 4 * weights, "grpo": 2 * weights}
        there = learned + (0 if config.offload else others[stage])
        sampler = config.rollout.gpu_memory_utilization * gpu
        assert there + sampler < 0.95 * gpu
        assert 2 * count(config.model) / config.rollout.tp / 2**30 < 0.8 * sampler


@pytest.mark.parametrize("name", PUBLIC)
def test_public_recipes_say_what_their_sources_say(name: str) -> None:
    """Batches, rates and lengths of open-instruct's Tulu 3 and of verl's scripts."""
    big = name == "llama3-70b"
    config = {stage: resolve(STAGES[stage], name, {"output": Path("runs")}) for stage in STAGES}
    found = {
        stage: (each.batch.global_batch_size, each.batch.seq_length, each.optimizer.lr)
        for stage, each in config.items()
    }
    assert found["sft"] == (128, 4096, 2e-6 if big else 5e-6)
    assert found["dpo"] == (128, 2048, 2e-7 if big else 5e-7)
    assert found["reward"] == (256, 2048, 3e-6)
    assert found["rlhf"] == (256, 1024 + 512, 4e-7 if big else 1e-6)
    assert found["grpo"] == (5 * 256, 1024 + 1024, 4e-7 if big else 1e-6)
    assert [config[stage].optimizer.warmup(1000) for stage in ("sft", "dpo")] == [30, 100]
    assert config["sft"].train.steps == 2 * 939_344 // 128
    for stage, samples in (("rlhf", 1024), ("grpo", 5 * 1024)):
        each = config[stage]
        assert isinstance(each, OnPolicyConfig)
        assert (each.samples_per_step, each.updates_per_step) == (samples, 4)


def test_tiny_blooms_heads_are_too_narrow_for_vllm_on_a_cpu() -> None:
    """As its comment says, which names the shape that can be sampled: 128 / 4 = 32."""
    model = load_preset("tiny-bloom").model
    assert model.head_width not in CPU_HEAD_DIMS
    wider = model.model_copy(update={"num_attention_heads": 4, "num_query_groups": 4})
    assert wider.head_width in CPU_HEAD_DIMS
