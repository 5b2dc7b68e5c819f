"""What users get wrong about learning from a policy's own answers, refused before a start."""

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from alignctl.run_folder import LATEST
from tests import tiny
from tests.commands import Outcome
from tests.stages.conftest import Alignctl, refused, snapshot

STAGES = ("rlhf", "online-dpo", "grpo")
ROWS = [{"prompt": f"{a} + 1?", "answer": str(a + 1), "eval_func": "math_rule"} for a in range(9)]

Command = Callable[..., Outcome]


def write_llama(
    folder: Path, *, is_reward: bool = False, heads: int = 2, layers: int = 2, num_extra: int = 0
) -> Path:
    """The model of `tiny.on_policy_preset`, or a reward model of this shape, and its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=32 * heads,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=64,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        vocab_size=tiny.VOCABULARY + num_extra,
        num_labels=1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    model = LlamaForSequenceClassification(config) if is_reward else LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return tiny.write_tokenizer(folder, num_extra=num_extra)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read-only by agreement: policy, reward, tiny.yaml, prompts.jsonl."""
    folder = tmp_path_factory.mktemp("models")
    write_llama(folder / "policy")
    write_llama(folder / "reward", is_reward=True)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny.on_policy_preset()), encoding="utf-8")
    tiny.write_rows(folder / "prompts.jsonl", ROWS)
    return folder


@pytest.fixture
def refuse(alignctl: Alignctl, models: Path, tmp_path: Path) -> Callable[..., str]:
    """Runs a stage on `models` until it refuses; returns what it said, and sees to leftovers."""

    def run(stage: str, *overrides: str, **flags: Path | int | None) -> str:
        named: dict[str, Path | int | None] = {
            "preset": models / "tiny.yaml",
            "load": models / "policy",
            "data": models / "prompts.jsonl",
            "output": tmp_path / "new",
        }
        if stage != "grpo":
            named["reward-load"] = models / "reward"
        named |= {name.replace("_", "-"): value for name, value in flags.items()}
        words = [
            word
            for name, value in named.items()
            if value is not None
            for word in (f"--{name}", value)
        ]
        before = snapshot(models)
        said = refused(alignctl(stage, *words, *overrides))
        assert snapshot(models) == before
        assert not (tmp_path / "new").exists()
        return said

    return run


Refuse = Callable[..., str]


@pytest.mark.parametrize("stage", STAGES)
def test_a_reward_model_is_missing(refuse: Refuse, stage: str) -> None:
    said = refuse(stage, "score.source=merge", reward_load=None)
    assert said.startswith("error: --reward-load is missing: score.source merge needs a reward")
    assert f"hint: alignctl {stage} --help" in said


def test_paths_that_are_not_there_name_their_neighbours(refuse: Refuse, models: Path) -> None:
    said = refuse("rlhf", f"value.load={models / 'rewardd'}", reward_load=models / "rewar")
    assert f"--reward-load {models}/rewar does not exist; did you mean {models}/reward?" in said
    assert f"value.load {models}/rewardd does not exist; did you mean {models}/reward?" in said


@pytest.mark.parametrize("stage", ["rlhf", "online-dpo"])
def test_a_policy_scores_nothing(refuse: Refuse, models: Path, stage: str) -> None:
    said = refuse(stage, reward_load=models / "policy")
    assert f"--reward-load {models}/policy: this is a policy, and a reward model is needed" in said
    assert "hint: train one: alignctl reward --load ..." in said


@pytest.mark.parametrize("stage", STAGES)
def test_a_reward_model_writes_nothing(refuse: Refuse, models: Path, stage: str) -> None:
    said = refuse(stage, load=models / "reward")
    assert f"this is a reward model, and alignctl {stage} trains a policy" in said


@pytest.mark.parametrize("stage", STAGES)
def test_end_tokens_that_the_policy_has_not(refuse: Refuse, tmp_path: Path, stage: str) -> None:
    policy = write_llama(tmp_path / "policy")
    file = policy / "generation_config.json"
    file.write_text('{"eos_token_id": [2, 4096]}')
    said = refuse(stage, load=policy)
    assert f"{file}: eos_token_id has 4096, which is no token of this model" in said


def test_a_reward_model_that_reads_other_tokens(refuse: Refuse, tmp_path: Path) -> None:
    other = write_llama(tmp_path / "other", is_reward=True, num_extra=3)
    said = refuse("rlhf", reward_load=other)
    assert (
        f"--reward-load {other}: its tokenizer has 264 tokens and is not that of the policy, which "
        "has 261: its scores would be noise"
    ) in said
    said = refuse("grpo", "score.source=merge", reward_load=other)
    assert "its tokenizer has 264 tokens" in said


@pytest.mark.parametrize("name", ["--reward-load", "value.load"])
def test_a_model_that_cannot_be_cut_as_the_policy_is(
    refuse: Refuse, tmp_path: Path, name: str
) -> None:
    """Three heads at TP 2."""
    other = write_llama(tmp_path / "other", is_reward=True, heads=3)
    if name == "value.load":
        said = refuse("rlhf", f"value.load={other}")
    else:
        said = refuse("rlhf", reward_load=other)
    assert f"{name} {other} cannot be laid out as the policy is: " in said
    assert "model.num_attention_heads 3 is not divisible by parallel.tp 2" in said
    assert "hint: choose parallel.tp and parallel.pp that divide both models" in said


def test_a_model_that_cannot_be_cut_as_its_role_says(refuse: Refuse, tmp_path: Path) -> None:
    """Three heads: at TP 1 beside a policy at TP 2, but for the value model that starts from it."""
    other = write_llama(tmp_path / "other", is_reward=True, heads=3)
    said = refuse("rlhf", "roles.reward.parallel.tp=1", reward_load=other)
    assert f"the value model {other} cannot be laid out as the policy is: " in said
    said = refuse(
        "rlhf",
        "roles.reward.parallel.tp=1",
        "roles.value.parallel.pp=2",
        "roles.value.parallel.tp=1",
        "parallel.tp=1",
        f"value.load={write_llama(tmp_path / 'one', is_reward=True, layers=1)}",
        reward_load=other,
    )
    assert "cannot be laid out as roles.value.parallel: model.num_layers 1 is not divisible" in said


def test_a_llama_scores_no_answers_of_a_qwen_3(refuse: Refuse, tmp_path: Path) -> None:
    """They have tokenizers of their own; one message, before anything starts."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        num_hidden_layers=2,
        hidden_size=64,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=64,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        vocab_size=tiny.VOCABULARY + 3,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    policy = tmp_path / "qwen3"
    Qwen3ForCausalLM(config).save_pretrained(policy)
    tiny.write_tokenizer(policy, num_extra=3)
    preset = tiny.on_policy_preset()
    preset["model"] |= {
        "family": "qwen3",
        "head_dim": 64,
        "tie_embeddings": True,
        "norm_epsilon": 1e-5,
        "vocab_size": tiny.VOCABULARY + 3,
    }
    (tmp_path / "qwen3.yaml").write_text(yaml.safe_dump(preset), encoding="utf-8")
    llama = write_llama(tmp_path / "llama", is_reward=True)
    said = refuse("rlhf", preset=tmp_path / "qwen3.yaml", load=policy, reward_load=llama)
    assert said.count("error:") == 1
    assert (
        f"--reward-load {llama}: its tokenizer has 261 tokens and is not that of the policy, which "
        "has 264: its scores would be noise"
    ) in said


def test_a_value_model_that_cannot_have_the_policys_adapters(
    refuse: Refuse, tmp_path: Path
) -> None:
    """It is half as wide as the policy, whose 64 dimensions have room for 48."""
    other = write_llama(tmp_path / "other", is_reward=True, heads=1)
    said = refuse("rlhf", f"value.load={other}", "parallel.tp=1", "lora.rank=48")
    assert f"the value model, {other}, cannot have the policy's adapters: " in said
    assert "lora.rank 48 is not less than model.hidden_size 32" in said
    assert "hint: give both models adapters that fit, or leave lora out" in said


@pytest.mark.parametrize("stage", ["rlhf", "online-dpo"])
def test_an_iteration_that_is_not_there_is_told_the_others(
    refuse: Refuse, models: Path, tmp_path: Path, stage: str
) -> None:
    for iteration in (20, 100):
        (tmp_path / "run" / "checkpoints" / f"iter_{iteration:07d}").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / LATEST).write_text("100")
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoints"):
        said = refuse(stage, reward_load=folder, reward_load_iteration=40)
        assert (
            f"--reward-load-iteration 40: there is no {tmp_path}/run/checkpoints/iter_0000040"
            in (said)
        )
        assert "hint: the iterations that are there: 20, 100" in said
    for folder in (tmp_path / "run@iter_20", tmp_path / "run/checkpoints/iter_0000100"):
        said = refuse(stage, reward_load=folder, reward_load_iteration=20)
        assert (
            f"--reward-load {folder} with --reward-load-iteration 20: two ways to say which "
            "checkpoint"
        ) in said
        assert "hint: leave one out: " in said
    said = refuse(stage, reward_load_iteration=40)
    assert f"hint: {models}/reward holds no checkpoints by iteration: leave the flag out" in said


@pytest.mark.parametrize("stage", STAGES)
def test_prompts_that_are_all_too_long(refuse: Refuse, models: Path, stage: str) -> None:
    said = refuse(stage, "data.max_prompt_length=3")
    assert (
        f"{models}/prompts.jsonl: no prompts: all 9 rows are longer than data.max_prompt_length, 3 "
        "tokens"
    ) in said
    assert "hint: raise it, or cut prompts with data.long_prompts=cut" in said


@pytest.mark.parametrize("row", [{"prompt": "Tell me more."}, {"prompt": "1 + 1?", "answer": "2"}])
def test_rows_that_nothing_could_score(refuse: Refuse, tmp_path: Path, row: dict[str, str]) -> None:
    """An answer that no rule compares with is of no use."""
    file = tiny.write_rows(tmp_path / "rows.jsonl", [*ROWS, row, row])
    said = refuse("grpo", data=file)
    assert (
        f"{file}:10: this is one of 2 prompts (of 11) without answer or eval_func, and "
        "score.source is sparse_only: nothing could score it"
    ) in said
    assert "hint: give all rows prompt, answer and eval_func; or score by a model" in said


def test_a_merge_of_a_rule_that_no_row_names(refuse: Refuse, models: Path, tmp_path: Path) -> None:
    file = tiny.write_rows(tmp_path / "rows.jsonl", [{"prompt": "Tell me more."}] * 4)
    said = refuse("grpo", "score.source=merge", data=file, reward_load=models / "reward")
    assert f"{file}: score.source is merge, and no row has answer and eval_func for a rule" in said
    assert "hint: leave it to the reward model: score.source=dense_only" in said


@pytest.mark.parametrize("stage", STAGES)
def test_a_rule_that_is_not_known(refuse: Refuse, tmp_path: Path, stage: str) -> None:
    file = tiny.write_rows(tmp_path / "rows.jsonl", [ROWS[0] | {"eval_func": "maths_rule"}])
    said = refuse(stage, data=file)
    assert f"{file}:1: eval_func 'maths_rule' is not a rule that is known" in said
    assert "hint: did you mean math_rule?" in said


@pytest.mark.parametrize(
    ("stage", "override", "words"),
    [
        ("rlhf", "rollout.max_new_tokens=70", "is not less than batch.seq_length 70"),
        ("grpo", "experience.samples=1", "take 2 or more (8 is usual)"),
        ("online-dpo", "experience.samples=1", "take 2 or more (8 is usual)"),
        ("rlhf", "model.hidden_dropout=0.1", "set model.hidden_dropout to 0.0"),
        ("grpo", "rollout.max_tokens=3", "did you mean 'rollout.max_new_tokens'?"),
    ],
)
def test_settings_that_cannot_be(refuse: Refuse, stage: str, override: str, words: str) -> None:
    assert words in refuse(stage, override)


def test_a_reward_model_that_has_no_part(refuse: Refuse, models: Path) -> None:
    said = refuse("grpo", reward_load=models / "reward")
    assert f"error: --reward-load {models}/reward: " in said
    assert "has no effect with score.source sparse_only" in said


@pytest.mark.parametrize("stage", STAGES)
def test_vllm_is_missing(refuse: Refuse, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    version = metadata.version

    def without_vllm(name: str) -> str:
        if name.startswith("vllm"):
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without_vllm)
    said = refuse(stage)
    assert "error: vLLM is not installed; 0.32 is the version that was tested" in said
    assert "hint: pip install 'vllm" in said


def test_vllm_of_another_version_is_warned_of(
    alignctl: Alignctl, monkeypatch: pytest.MonkeyPatch, models: Path, tmp_path: Path
) -> None:
    """The run goes on; here to the next mistake."""
    version = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: "0.99.1" if name.startswith("vllm") else version(name)
    )
    words = ["--preset", models / "tiny.yaml", "--load", models / "reward"]
    where = ["--data", models / "prompts.jsonl", "--output", tmp_path / "new"]
    outcome = alignctl("grpo", *words, *where)
    assert "warning: vLLM 0.99.1 is not the version that was tested, 0.32" in outcome.err
    assert "this is a reward model" in refused(outcome)
    assert not (tmp_path / "new").exists()


def test_heads_that_vllm_cannot_run_on_a_cpu(refuse: Refuse) -> None:
    """tiny-bloom's are 128 / 16 = 8 wide."""
    said = refuse("grpo", preset=Path("tiny-bloom"))
    assert (
        "vLLM cannot run attention heads of 8 (model.hidden_size 128 / model.num_attention_heads "
        "16) without a GPU"
    ) in said


@pytest.mark.parametrize("stage", STAGES)
def test_the_command_explains_itself_and_shows_what_it_would_run(
    alignctl: Alignctl, models: Path, stage: str
) -> None:
    shown = alignctl(stage, "--help")
    assert shown.code == 0
    assert "--reward-load-iteration" in shown.out
    assert f"alignctl {stage} --preset llama2-7b" in shown.out
    outcome = alignctl(stage, "--preset", "llama2-70b", "--nnodes", 4, "--dry-run")
    assert outcome.code == 0, outcome.text
    commands = [line for line in outcome.out.splitlines() if "alignctl.engines.torchrun" in line]
    assert len(commands) == 4
    assert f" -m alignctl.stages.{stage.replace('-', '_')} runs/llama2-70b-{stage}" in commands[0]
    assert f'"stage": "{stage}"' in outcome.out


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "my_reward.py: cannot be read: No such file or directory"),
        ("def score(p, c, r) return 1", "my_reward.py:1: not valid Python: expected ':'"),
        ("def rate(p, c, r): return 1", "no function 'score' in it; its functions: rate"),
        ("def score(answer): return 1", "score(answer) cannot be called with three arguments"),
        ("import nothing_like_it\ndef score(p, c, r): ...", "my_reward.py:1: ModuleNotFoundError"),
    ],
)
def test_a_reward_of_ones_own_that_cannot_work(
    stage: str, text: str | None, said: str, refuse: Refuse, tmp_path: Path
) -> None:
    file = tmp_path / "my_reward.py"
    if text is not None:
        file.write_text(text)
    assert said in refuse(stage, f"score.functions=[{{file: {file}}}]")


@pytest.mark.parametrize(
    ("functions", "said"),
    [
        ("[{file: a.py}, {file: a.py}]", "2 rewards are called 'score'; give them labels"),
        ("[{url: 'ftp://x'}]", "url 'ftp://x' is not one of http:// or https://"),
        ("[{file: a.py, weight: .nan}]", "score.functions.0.weight must be a finite number"),
        ("[{file: a.py, wieght: 1}]", "unknown key 'score.functions.0.wieght'"),
        ("a.py", "score.functions"),
        ("{file: a.py}", "is a mapping"),
    ],
)
def test_an_entry_of_own_rewards_that_is_wrong(functions: str, said: str, refuse: Refuse) -> None:
    assert said in refuse("grpo", f"score.functions={functions}")


def test_own_rewards_alone_have_to_be_there(refuse: Refuse) -> None:
    said = refuse("grpo", "score.source=functions")
    assert "score.source functions: score.functions is empty, so nothing scores" in said
