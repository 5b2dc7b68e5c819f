"""Stages under the sanitizer: no tensor in the wrong place, and no wait that nobody has named."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import tiny, tiny_on_policy

pytestmark = pytest.mark.ci

NAMED = {
    "common/embeddings/rotary_pos_embedding.py": "Megatron's angles, once a run",
    "common/embeddings/rope_utils.py": "Megatron's rotation of packed documents, without "
    "Transformer Engine: in every layer",
    "core/pipeline_parallel/p2p_communication.py": "the shape of what a pipeline stage sends, "
    "since micro batches differ in length",
    "core/distributed/param_and_grad_buffer.py": "gathered parameters, once a step",
    "megatron/core/utils.py": "the gradient norm, once a step",
    "core/optimizer/clip_grads.py": "the gradient norm, once a step",
    "alignctl/engines/sums.py": "loss and metrics, once a step; log-probabilities of an episode",
    "alignctl/algorithms/pairs.py": "which answers are compared: a few numbers a micro batch",
    "alignctl/algorithms/reward.py": "the scores that a micro batch's answers have in the data",
    "alignctl/algorithms/dpo.py": "what the reference said of a micro batch",
    "alignctl/algorithms/samples.py": "a micro batch's place in its episode",
    "alignctl/algorithms/policy_loss.py": "a micro batch's advantages and old log-probabilities",
    "alignctl/algorithms/value_loss.py": "a micro batch's returns and old values",
}
"""Files in which an optimizer step may wait, and what for."""


def watch(tmp_path: Path, *arguments: object) -> dict[str, list[Any]]:
    """Runs a stage of two ranks and returns what the sanitizer found on them."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "tests.sanitizer.launch", *map(str, arguments)]
    done = subprocess.run(
        [*command, "--output", str(run), "launch.nproc_per_node=2"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads((run / f"sanitizer_rank_{rank}.json").read_text()) for rank in (0, 1)]
    return {
        "mixes": [mix for report in reports for mix in report["mixes"]],
        "waits": [wait for report in reports for wait in report["waits"]],
    }


def check(found: dict[str, list[Any]]) -> None:
    assert found["mixes"] == []
    lines = [what for phase, what, _ in found["waits"] if phase == "step"]
    assert lines
    assert [line for line in lines if line.split(" at ")[1].split(":")[0] not in NAMED] == []


@pytest.mark.parametrize(
    ("stage", "overrides"),
    [
        ("sft", ["parallel.tp=2", "parallel.sequence_parallel=true"]),
        ("reward", ["parallel.pp=2"]),
        ("dpo", ["lora.rank=4", "parallel.tp=2"]),
        ("sft", ["parallel.distributed_optimizer=true", "precision=bf16"]),
    ],
    ids=["sft-tp", "reward-pp", "dpo-lora", "sft-dp-bf16"],
)
def test_training_keeps_its_tensors_apart(tmp_path: Path, stage: str, overrides: list[str]) -> None:
    hf, rows = tmp_path / "hf", tmp_path / "rows.jsonl"
    tiny.write_model(hf)
    (tiny.write_rows if stage == "sft" else tiny.write_pairs)(rows)
    preset = tiny.write_preset(tmp_path / "tiny.yaml", **tiny.preset())
    flags = ["--preset", preset, "--load", hf, "--data", rows]
    steps = ["train.steps=2", "optimizer.warmup_steps=0"]
    check(watch(tmp_path, stage, *flags, *steps, *overrides))


@pytest.mark.parametrize(
    ("stage", "overrides"),
    [
        ("rlhf", ["parallel.pp=2", "offload=true", "value.warmup_steps=1"]),
        ("grpo", ["parallel.tp=2"]),
    ],
    ids=["rlhf-pp-offload", "grpo-tp"],
)
def test_episodes_keep_their_tensors_apart(
    tmp_path: Path, stage: str, overrides: list[str]
) -> None:
    folder = tmp_path / "on_policy"
    tiny_on_policy.write(folder)
    flags = ["--preset", folder / "tiny.yaml", "--load", folder / "hf"]
    flags += ["--reward-load", folder / "reward", "--data", folder / "prompts.jsonl"]
    check(watch(tmp_path, stage, *flags, "train.steps=2", *overrides))
