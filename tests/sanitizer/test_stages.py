"""Stages under the sanitizer: no tensor in the wrong place, and no wait that is not in the budget.

A run takes two steps; what is compared is the second one, when nothing is done for the first time.
"""

import json
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from alignctl.run_folder import RunFolder
from tests import tiny, tiny_on_policy
from tests.sanitizer.budget import AT_FIRST, BUDGET

pytestmark = pytest.mark.ci

STEPS = 2
HEADS = 2
"""Of 16 numbers each, the fewest that FlexAttention computes."""
TRAINING = {
    "pretrain-pp": ("pretrain", ["parallel.pp=2"]),
    "sft-tp": ("sft", ["parallel.tp=2", "parallel.sequence_parallel=true"]),
    "sft-dp-bf16": ("sft", ["parallel.distributed_optimizer=true", "precision=bf16"]),
    "sft-deepspeed": ("sft", ["engine=deepspeed"]),
    "reward-bloom-flex-pp": ("reward", ["parallel.pp=2", "kernels.attention=flex"]),
    "dpo-lora-tp": ("dpo", ["parallel.tp=2", "lora.rank=4"]),
}
ON_POLICY = {
    "rlhf-pp-offload": ("rlhf", ["parallel.pp=2", "offload=true", "value.warmup_steps=1"]),
    "rlhf-tp-flex": (
        "rlhf",
        ["parallel.tp=2", "parallel.sequence_parallel=true", "kernels.attention=flex"],
    ),
    "online-dpo-tp": ("online-dpo", ["parallel.tp=2"]),
    "online-dpo-pp": ("online-dpo", ["parallel.pp=2"]),
    "grpo-tp": ("grpo", ["parallel.tp=2"]),
    "grpo-dp-bf16": ("grpo", ["parallel.distributed_optimizer=true", "precision=bf16"]),
}
RESUMED = ("sft-tp", "sft-deepspeed", "rlhf-tp-flex")
"""Stopped after a step, and gone on with."""


def watch(run: Path, *arguments: object) -> list[dict[str, Any]]:
    """Runs a stage on two ranks and returns what the sanitizer found on each."""
    command = [sys.executable, "-m", "tests.sanitizer.launch", *map(str, arguments)]
    knobs = [f"train.steps={STEPS}", "launch.nproc_per_node=2"]
    done = subprocess.run(
        [*command, "--output", str(run), *knobs], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((run / f"sanitizer_rank_{rank}.json").read_text()) for rank in (0, 1)]


def check(found: list[dict[str, Any]], case: str) -> None:
    """Compares what was found with the budget; a difference is told with its lines."""
    assert [mix for rank in found for mix in rank["mixes"]] == []
    counts, lines = count_waits(found)
    assert counts == BUDGET[case], "\n".join(
        f"{phase}: {what} at {line}"
        for (phase, what), where in lines.items()
        for line in sorted(where)
        if counts[phase][what] != BUDGET[case].get(phase, {}).get(what)
    )
    in_loops = [
        what
        for rank in found
        for _, phase, what, _ in rank["waits"]
        if phase == "loop" and name(what) not in {*AT_FIRST, *BUDGET[case].get("loop", ())}
    ]
    assert in_loops == [], "a loop over micro batches waits, in a validation or the first step"


def name(what: str) -> str:
    """The file in which something waits, and what for, without the line."""
    kind, place = what.split(" at ")
    return f"{place.split(':')[0]}: {kind}"


def count_waits(
    found: list[dict[str, Any]],
) -> tuple[dict[str, dict[str, int]], dict[tuple[str, str], set[str]]]:
    """Waits of the last step by phase, on the rank that waits most often, and their lines.

    Those of updates are of one optimizer step, the others of the whole step or episode.
    """
    most: defaultdict[str, Counter[str]] = defaultdict(Counter)
    lines = defaultdict(set)
    for rank in found:
        last = max(map(int, rank["updates"]))
        updates = rank["updates"][str(last)]
        counts: Counter[tuple[str, str]] = Counter()
        for window, phase, what, count in rank["waits"]:
            if window == last and name(what) not in AT_FIRST:  # as a resumed run's first step is
                counts[phase, name(what)] += count
                lines[phase, name(what)].add(what.split(" at ")[1])
        for (phase, what), count in counts.items():
            if phase == "update":
                assert count % updates == 0, f"{what}: {count} in {updates} optimizer steps"
                count //= updates
            most[phase][what] = max(most[phase][what], count)
    return {phase: dict(counter) for phase, counter in most.items()}, lines


def command_of(case: str, folder: Path) -> list[object]:
    """Writes the inputs of a case; returns its command, without what `watch` adds."""
    if case in TRAINING:
        stage, knobs = TRAINING[case]
        return [stage, *write_inputs(folder, case), "optimizer.warmup_steps=0", *knobs]
    stage, knobs = ON_POLICY[case]
    inputs = tiny_on_policy.write(folder / "inputs")
    flags: list[object] = ["--preset", inputs / "tiny.yaml", "--load", inputs / "hf"]
    flags += ["--reward-load", inputs / "reward", "--data", inputs / "prompts.jsonl"]
    return [stage, *flags, *knobs]


def write_inputs(folder: Path, case: str) -> list[object]:
    """Writes a model and rows; returns the flags that name them."""
    stage, _ = TRAINING[case]
    family: tiny.Family = "bloom" if "bloom" in case else "llama-gqa"
    shape = {"num_attention_heads": HEADS, "num_query_groups": HEADS}
    made = tiny.preset(family)
    made["model"] |= shape
    tiny.write_model(folder / "hf", family, heads=HEADS)
    preset = tiny.write_preset(folder / "tiny.yaml", **made)
    flags: list[object] = ["--preset", preset, "--load", folder / "hf", "--data"]
    if stage == "pretrain":
        return [*flags, tiny.write_corpus(folder / "corpus")]
    write = tiny.write_rows if stage == "sft" else tiny.write_pairs
    return [*flags, write(folder / "rows.jsonl")]


@pytest.mark.parametrize("case", [each for each in TRAINING if each not in RESUMED])
def test_training_keeps_its_tensors_apart(tmp_path: Path, case: str) -> None:
    check(watch(tmp_path / "run", *command_of(case, tmp_path)), case)


@pytest.mark.parametrize("case", [each for each in ON_POLICY if each not in RESUMED])
def test_episodes_keep_their_tensors_apart(tmp_path: Path, case: str) -> None:
    check(watch(tmp_path / "run", *command_of(case, tmp_path)), case)


@pytest.mark.parametrize("case", RESUMED)
def test_a_resumed_run_keeps_its_tensors_apart(tmp_path: Path, case: str) -> None:
    """As after a kill between the first checkpoint and the second step."""
    run = RunFolder(tmp_path / "run")
    command = [*command_of(case, tmp_path), "checkpoint.save_interval=1"]
    check(watch(run.path, *command), case)
    shutil.rmtree(run.checkpoints / "iter_0000002")
    (run.checkpoints / "latest_checkpointed_iteration.txt").write_text("1")
    run.result.unlink()
    found = watch(run.path, *command)
    assert all(max(map(int, rank["updates"])) == 1 for rank in found)  # the second step alone
    check(found, case)
