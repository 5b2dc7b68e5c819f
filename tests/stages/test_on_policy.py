"""What must hold in real runs: two processes, vLLM and Megatron, a stage at each layout.

The three runs ask the same prompts with the same seeds in their first episode, so that their
answers can be compared between layouts.
"""

from pathlib import Path

import numpy as np
import pytest

from alignctl.checkpoints.find import find
from tests import commands
from tests import tiny_on_policy as tiny

pytestmark = [pytest.mark.ci, pytest.mark.timeout(600)]

LAYOUTS = {
    "rlhf": ("offload=true",),
    "grpo": ("parallel.tp=2", "parallel.sequence_parallel=true", "rollout.verify_push=true"),
    "online-dpo": ("parallel.pp=2",),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("on_policy"))


def finished(stage: str, inputs: Path, output: Path, *knobs: str) -> Path:
    outcome = commands.alignctl(*tiny.command(stage, inputs, output, *knobs))
    assert outcome.code == 0, outcome.text
    assert len(tiny.rows(output, "train")) == tiny.EPISODES
    return output


@pytest.fixture(scope="module")
def rlhf(inputs: Path) -> Path:
    """At DP 2; models leave the device between their turns."""
    return finished("rlhf", inputs, inputs / "rlhf", *LAYOUTS["rlhf"])


@pytest.fixture(scope="module")
def grpo(inputs: Path) -> Path:
    """At TP 2 with sequence parallelism, one update an episode; every push is compared."""
    return finished("grpo", inputs, inputs / "grpo", *LAYOUTS["grpo"])


@pytest.fixture(scope="module")
def online_dpo(inputs: Path) -> Path:
    """At PP 2."""
    return finished("online-dpo", inputs, inputs / "dpo", *LAYOUTS["online-dpo"])


def assert_sampled_by_the_policy(run: Path) -> None:
    """Trainer and sampler agree before and after pushes; the first policy is the reference."""
    rows = tiny.rows(run, "train")
    for row in rows:
        assert row["mismatch_max_difference"] <= 1e-4
        assert row["requests_failed"] == row["requests_retried"] == 0
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert abs(rows[1]["kl"]) > 1e-3, "the policy that was pushed has learned"
    for episode, row in enumerate(rows, start=1):
        samples = tiny.samples(run, episode)
        assert len(samples) == tiny.PROMPTS * tiny.SAMPLES
        prompts = [sample["prompt"] for sample in samples]
        assert prompts[::2] == prompts[1::2], "a group was split"
        assert np.mean([s["kl"] for s in samples]) == pytest.approx(row["kl"], abs=1e-6)
        assert np.mean([s["score"] for s in samples]) == pytest.approx(row["score"], abs=1e-6)
        assert np.mean([s["is_finished"] for s in samples]) == row["finished"]
    assert 0 < rows[0]["finished"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("stage", LAYOUTS)
def test_a_run_in_bf16_samples_what_it_trains(stage: str, inputs: Path, tmp_path: Path) -> None:
    """bf16 has eight bits; the first policy is still the reference, bit for bit."""
    run = finished(stage, inputs, tmp_path / "run", "precision=bf16", *LAYOUTS[stage])
    rows = tiny.rows(run, "train")
    for row in rows:
        assert 0 < row["mismatch_mean_difference"] < 0.02
        assert row["mismatch_mean_ratio"] == pytest.approx(1, abs=0.02)
        assert row["requests_failed"] == 0
    assert rows[0]["kl"] == pytest.approx(0, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        ("parallel.tp=2", "parallel.sequence_parallel=true", "offload=true"),
        ("parallel.pp=2",),
    ],
    ids=lambda layout: layout[0],
)
@pytest.mark.parametrize("stage", LAYOUTS)
def test_adapters_learn_from_their_own_answers(
    stage: str, layout: tuple[str, ...], inputs: Path, tmp_path: Path
) -> None:
    """Merged weights are pushed and compared; the reference is the policy without adapters.

    The value model has adapters of its own, on the reward model, and comes to explain the returns.
    """
    knobs = ("lora.rank=8", "rollout.verify_push=true", *layout)
    run = finished(stage, inputs, tmp_path / "run", *knobs)
    assert_sampled_by_the_policy(run)
    policy = find(run)
    assert policy.adapted is not None
    assert policy.adapted.base.path == inputs / "hf"
    if stage == "rlhf":
        value = find(run / "value")
        assert value.adapted is not None
        assert value.adapted.base.path == inputs / "reward"
        first, *_, last = (row["value_explained_variance"] for row in tiny.rows(run, "train"))
        assert last > first


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout", [("parallel.tp=2", "parallel.sequence_parallel=true"), ("parallel.pp=2",)]
)
def test_adapters_of_policy_and_value_model_raise_the_score(
    layout: tuple[str, ...], inputs: Path, tmp_path: Path
) -> None:
    """An answer that does not end costs 5: a quarter of the first policy's, soon hardly any.

    The value model begins worse than any constant, and comes to explain most of the returns.
    """
    costs = ("score.missing_eos_score=-5", "score.ngram_coef=0.0", "penalty.coef=0.01")
    knobs = ("lora.rank=8", "train.steps=12", "experience.prompts=16", "penalty.controller=fixed")
    run = tmp_path / "run"
    start = tiny.command("rlhf", inputs, run, *knobs, *costs, *layout)
    outcome = commands.alignctl(*start)
    assert outcome.code == 0, outcome.text
    first, *_ = rows = tiny.rows(run, "train")
    late = {key: np.mean([row[key] for row in rows[-5:]]) for key in first if key != "kind"}
    assert first["finished"] < 0.8
    assert late["finished"] > 0.9
    assert late["score"] > first["score"] + 0.4
    assert first["value_explained_variance"] < 0
    assert late["value_explained_variance"] > 0.3


def test_rlhf_rewards_are_scores_less_the_cost_of_kl(rlhf: Path) -> None:
    """Mean of the rewards' sums = score + penalty of repetitions - coefficient x KL."""
    assert_sampled_by_the_policy(rlhf)
    for row in tiny.rows(rlhf, "train"):
        extra = row["reward"] - (row["score"] - row["kl_coef"] * row["kl"])
        assert -1.0 < extra <= 1e-6, "nothing but the penalty of repetitions is left"
        assert row["updates"] == 4
        assert row["entropy"] > 0
        assert row["value_grad_norm"] > 0


def test_rlhf_pays_the_kl_that_its_controller_saw(rlhf: Path) -> None:
    """Target 0.05, horizon 100, 16 answers: coefficient x (1 + 0.16 x clipped error)."""
    rows = tiny.rows(rlhf, "train")
    coef = tiny.BETA
    for row in rows:
        assert row["kl_coef"] == pytest.approx(coef, rel=1e-6)
        error = min(max(row["kl"] / 0.05 - 1, -0.2), 0.2)
        coef *= 1 + error * 16 / 100
    assert rows[1]["kl_coef"] < tiny.BETA < rows[1]["kl_coef"] / (1 - 0.2 * 0.16) + 1e-9


def test_a_run_of_rlhf_leaves_a_policy_and_a_value_model(rlhf: Path) -> None:
    """Both open as models; the value model as a reward model, which it can start the next from."""
    assert find(rlhf).role == "policy"
    value = find(rlhf / "value")
    assert value.role == "reward"
    assert value.manifest is not None
    assert value.manifest.score_offset == 0.0
    assert value.manifest.iteration == tiny.EPISODES


def test_grpo_starts_every_episode_at_ratio_one(grpo: Path) -> None:
    """With one update per episode nothing has moved yet: exactly."""
    assert_sampled_by_the_policy(grpo)
    for row in tiny.rows(grpo, "train"):
        assert row["ratio"] == 1
        assert row["approx_kl"] == row["approx_kl_k1"] == 0
        assert row["clip_fraction_low"] == row["clip_fraction_high"] == 0
        assert row["updates"] == 1


def test_grpo_scores_by_model_and_rule_and_warns_that_the_rule_finds_nothing(grpo: Path) -> None:
    for row in tiny.rows(grpo, "train"):
        assert row["score"] == pytest.approx(row["model_score"] + row["accuracy"], abs=1e-9)
    sample = tiny.samples(grpo, 1)[0]
    assert sample["rule"] in ("no_answer", "wrong")
    assert sample["expected"].isdecimal()
    warned = [row["text"] for row in tiny.rows(grpo, "note") if row["text"].startswith("warning")]
    assert len(warned) == 1
    assert "no answer was right in the last 2 episodes" in warned[0]
    assert "no_answer" in warned[0]


def test_online_dpo_learns_from_pairs_and_counts_prompts_without(online_dpo: Path) -> None:
    """Two answers a prompt: one pair, or none where both are scored equally."""
    assert_sampled_by_the_policy(online_dpo)
    rows = tiny.rows(online_dpo, "train")
    for episode, row in enumerate(rows, start=1):
        scores = [sample["score"] for sample in tiny.samples(online_dpo, episode)]
        ties = sum(a == b for a, b in zip(scores[::2], scores[1::2], strict=True))
        assert row["prompts_without_pair"] == ties
        assert row["pairs"] == tiny.PROMPTS - ties
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert rows[0]["margin"] == pytest.approx(0, abs=1e-5)


def test_the_first_answers_are_the_same_at_every_layout(
    rlhf: Path, grpo: Path, online_dpo: Path
) -> None:
    """DP 2, TP 2 and PP 2: the same weights, prompts and seeds; scores agree in float32."""
    first, *others = (tiny.samples(run, 1) for run in (rlhf, grpo, online_dpo))
    for other in others:
        for key in ("where", "prompt", "answer", "is_finished"):
            assert [sample[key] for sample in other] == [sample[key] for sample in first], key
        found = [sample["model_score"] for sample in other]
        assert found == pytest.approx([s["model_score"] for s in first], rel=1e-5, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        ("parallel.tp=2", "parallel.sequence_parallel=true", "rollout.tp=2"),
        ("parallel.pp=2",),
        ("parallel.distributed_optimizer=true", "batch.micro_batch_size=1"),
    ],
    ids=lambda layout: layout[0],
)
def test_rlhf_learns_the_same_at_every_layout(
    rlhf: Path, inputs: Path, tmp_path: Path, layout: tuple[str, ...]
) -> None:
    """All metrics of the first episode, value and policy updates among them."""
    run = finished("rlhf", inputs, tmp_path / "run", *layout)
    assert [s["answer"] for s in tiny.samples(run, 1)] == [
        s["answer"] for s in tiny.samples(rlhf, 1)
    ]
    found, expected = tiny.rows(run, "train")[0], tiny.rows(rlhf, "train")[0]
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if not key.startswith(("mismatch", "kind")):
            assert found[key] == pytest.approx(value, rel=2e-4, abs=1e-5), key
    assert_sampled_by_the_policy(run)
