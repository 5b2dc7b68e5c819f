"""The stages with DeepSpeed, as a user starts them; the engine itself: tests/parallel."""

from pathlib import Path

import pytest

from alignctl.run_folder import RunFolder
from tests import commands
from tests.e2e.test_resume import rows
from tests.stages.conftest import Alignctl, refused

pytestmark = pytest.mark.ci

DATA = {"sft": "train.jsonl", "reward": "pairs.jsonl", "dpo": "pairs.jsonl"}


def command(workspace: Path, stage: str, output: Path, *overrides: str) -> list[object]:
    """A run of the workspace's model and preset."""
    inputs = {"--preset": "tiny.yaml", "--load": "hf", "--data": DATA[stage]}
    words = [word for flag, name in inputs.items() for word in (flag, workspace / name)]
    return [stage, *words, "--output", output, *overrides]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "zero_stage"), [("sft", 2), ("reward", 2), ("dpo", 3)])
def test_a_stage_takes_the_same_course_with_either_engine(
    stage: str, zero_stage: int, workspace: Path, tmp_path: Path
) -> None:
    """Losses of four steps and of the validations; then Megatron's format from the run itself."""
    run = tmp_path / "deepspeed"
    overrides = ("engine=deepspeed", f"deepspeed.zero_stage={zero_stage}")
    outcome = commands.alignctl(*command(workspace, stage, run, *overrides))
    assert outcome.code == 0, outcome.text
    other = commands.alignctl(*command(workspace, stage, tmp_path / "megatron"))
    assert other.code == 0, other.text
    for kind in ("train", "validation"):
        ours, theirs = (
            [row["loss"] for row in rows(RunFolder(tmp_path / name), kind)]
            for name in ("deepspeed", "megatron")
        )
        assert ours == pytest.approx(theirs, rel=1e-5)
    role = ("--role", "reward") if stage == "reward" else ()
    target = tmp_path / "mcore"
    paths = ("--preset", workspace / "tiny.yaml", "--load", run, "--save", target)
    converted = commands.alignctl("convert-hf2mg", *paths, *role)
    assert converted.code == 0, converted.text
    assert (target / "latest_checkpointed_iteration.txt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(), ("lora.rank=4", "deepspeed.zero_stage=3")])
def test_a_run_goes_on_from_its_checkpoint_bit_for_bit(
    overrides: tuple[str, ...], workspace: Path, tmp_path: Path
) -> None:
    """Stopped by taking the second half of its steps, and its checkpoint, away."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    settings = ("engine=deepspeed", *overrides)
    for run in (whole, part):
        done = commands.alignctl(*command(workspace, "sft", run, *settings))
        assert done.code == 0, done.text
    folder = RunFolder(part)
    folder.result.unlink()
    (folder.checkpoints / "latest_checkpointed_iteration.txt").write_text("2")
    again = commands.alignctl(*command(workspace, "sft", part, *settings))
    assert again.code == 0, again.text
    name = "checkpoints/iter_0000004"
    for file in (
        "adapter_model.safetensors" if overrides else "model.safetensors",
        "deepspeed/rank_0.safetensors",
        "deepspeed/rank_1.safetensors",
    ):
        assert (whole / name / file).read_bytes() == (part / name / file).read_bytes()


@pytest.mark.slow
def test_a_reward_model_of_deepspeed_gives_the_same_scores_on_megatron(
    workspace: Path, tmp_path: Path
) -> None:
    """Of the held-out rows at its end, and where a run at TP 2 starts from it as converted."""
    run, target, other = (tmp_path / name for name in ("deepspeed", "mcore", "megatron"))
    trained = commands.alignctl(*command(workspace, "reward", run, "engine=deepspeed"))
    assert trained.code == 0, trained.text
    paths = ("--load", run, "--save", target)
    converted = commands.alignctl("convert-hf2mg", *paths, "--role", "reward")
    assert converted.code == 0, converted.text
    again = command(workspace, "reward", other, "parallel.tp=2", "train.steps=1")
    again[again.index("--load") + 1] = target
    again.append("optimizer.warmup_steps=0")
    scored = commands.alignctl(*again)
    assert scored.code == 0, scored.text
    assert "reward model" in scored.err
    before = rows(RunFolder(run), "validation")[-1]
    after = rows(RunFolder(other), "validation")[0]
    names = {"loss", "accuracy", "margin", "score_mean", "score_std"}
    assert names <= before.keys()
    assert [after[name] for name in names] == pytest.approx(
        [before[name] for name in names], rel=1e-4, abs=1e-6
    )


@pytest.mark.parametrize(
    ("overrides", "problems"),
    [
        (
            ("parallel.tp=2",),
            ["parallel.tp 2: engine deepspeed does not cut layers; set parallel.tp to 1"],
        ),
        (("parallel.pp=2",), ["parallel.pp 2: engine deepspeed does not cut layers"]),
        (
            ("model.hidden_dropout=0.1",),
            ["model.hidden_dropout 0.1 has no effect with engine deepspeed"],
        ),
        (
            ("parallel.logits_chunk_size=8",),
            ["parallel.logits_chunk_size 8 has no effect with engine deepspeed"],
        ),
        (
            ("parallel.overlap_grad_reduce=true",),
            ["parallel.overlap_grad_reduce true has no effect with engine deepspeed"],
        ),
        (("deepspeed.zero_stage=4",), ["deepspeed.zero_stage"]),
    ],
)
def test_what_deepspeed_cannot_do_is_refused_before_anything_starts(
    overrides: tuple[str, ...],
    problems: list[str],
    workspace: Path,
    tmp_path: Path,
    alignctl: Alignctl,
) -> None:
    run = tmp_path / "run"
    said = refused(alignctl(*command(workspace, "sft", run, "engine=deepspeed", *overrides)))
    assert all(problem in said for problem in problems)
    assert not run.exists()


@pytest.mark.slow
def test_another_zero_stage_cannot_resume_a_checkpoint(
    workspace: Path, tmp_path: Path, alignctl: Alignctl
) -> None:
    run = tmp_path / "run"
    done = commands.alignctl(*command(workspace, "sft", run, "engine=deepspeed"))
    assert done.code == 0, done.text
    RunFolder(run).result.unlink()
    overrides = ("engine=deepspeed", "deepspeed.zero_stage=3")
    said = refused(alignctl(*command(workspace, "sft", run, *overrides)))
    assert "zero_stage" in said
