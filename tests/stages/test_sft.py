"""Runs that cannot begin, cannot go on, or end before their time; on two ranks where any start."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignctl.reporting.metrics import recorded
from alignctl.run_folder import RunFolder
from tests import commands, tiny
from tests.stages.conftest import Alignctl, refused, snapshot
from tests.stages.full_disk import alignctl_on_full_disk

pytestmark = pytest.mark.ci


def sft(workspace: Path, output: Path, *overrides: str, **flags: object) -> list[object]:
    """A run of the workspace's model, data and preset."""
    inputs = {"preset": "tiny.yaml", "load": "hf", "data": "train.jsonl"}
    named = {name: workspace / file for name, file in inputs.items()} | flags
    words = [word for name, value in named.items() for word in (f"--{name}", value)]
    return ["sft", *words, "--output", output, *overrides]


@pytest.fixture
def unfinished(finished: Path) -> Iterator[RunFolder]:
    """The workspace's run as it was before its result was written; unharmed afterwards."""
    before = snapshot(finished)
    kept = finished.with_name("run.kept")
    shutil.copytree(finished, kept)
    (finished / "result.json").unlink()
    yield RunFolder(finished)
    shutil.rmtree(finished)
    kept.rename(finished)
    assert snapshot(finished).keys() == before.keys()


def test_a_folder_that_holds_another_run_names_every_difference(
    alignctl: Alignctl, workspace: Path, finished: Path
) -> None:
    before = snapshot(finished)
    said = refused(alignctl(*sft(workspace, finished, "optimizer.lr=0.02", "train.seed=7")))
    assert said.splitlines() == [
        f"error: {finished} holds another run; these settings differ:",
        "  optimizer.lr: 0.01 -> 0.02",
        "  train.seed: 1234 -> 7",
        f"hint: choose another --output, or use the run's own settings ({finished}/command.txt has "
        "its command)",
    ]
    assert snapshot(finished) == before


def test_a_finished_run_is_said_to_be_finished_and_nothing_is_done(
    alignctl: Alignctl, workspace: Path, finished: Path
) -> None:
    before = snapshot(finished)
    outcome = alignctl(*sft(workspace, finished))
    assert (outcome.code, outcome.out) == (0, f"{finished}\n")
    assert outcome.err.splitlines() == [
        "sft: checking the inputs",
        f"{finished} holds this run already, finished; choose another --output to repeat it",
        f"next: alignctl reward --preset {workspace / 'tiny.yaml'} --load {finished}",
    ]
    assert snapshot(finished) == before


def test_a_finished_run_goes_on_when_it_is_made_longer_and_prints_its_folder(
    workspace: Path, tmp_path: Path, finished: Path
) -> None:
    """`$(alignctl sft ...)` is the run folder: stdout has nothing else."""
    run = RunFolder(Path(shutil.copytree(finished, tmp_path / "run")))
    before = recorded(run, until=4)
    outcome = commands.alignctl(*sft(workspace, run.path, "train.steps=6"))
    assert (outcome.code, outcome.out) == (0, f"{run.path}\n"), outcome.text
    assert f"{run.path} is made longer: train.steps 4 -> 6; from here on" in outcome.err
    assert "sft: 6 steps, held out: loss " in outcome.err
    result = run.read_result()
    assert result is not None
    assert (result["steps"], run.latest_step()) == (6, 6)
    rows = recorded(run, until=6)
    assert rows[: len(before)] == before
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6]


def test_a_blend_goes_on_where_it_was_with_its_own_weights_alone(
    alignctl: Alignctl, workspace: Path, tmp_path: Path
) -> None:
    """Of 40 rows and 8 some are held out; half of a pass is from the few, several times."""
    few = [{"query": f"{n} and {n}?", "response": f"{n} {n}"} for n in range(8)]
    small = tiny.write_rows(tmp_path / "small.jsonl", few)
    run = RunFolder(tmp_path / "run")
    given = ("--preset", workspace / "tiny.yaml", "--load", workspace / "hf", "--output", run.path)

    def command(weight: int) -> list[object]:
        blend = f"data.blend={{{workspace}/train.jsonl: 1, {small}: {weight}}}"
        return ["sft", *given, blend, "data.packing=step"]

    def losses() -> list[float]:
        return [row["loss"] for row in recorded(run, until=4) if "loss" in row]

    outcome = commands.alignctl(*command(1))
    assert outcome.code == 0, outcome.text
    assert re.search(
        r"blend: a pass takes .*small.jsonl \d\d\.\d % \(\d\.\d\d times \d rows\)", outcome.err
    )
    before, result = losses(), run.read_result()

    run.result.unlink()
    (run.checkpoints / "latest_checkpointed_iteration.txt").write_text("2")
    assert f"data.blend.{small}: 1.0 -> 2.0" in refused(alignctl(*command(2)))
    outcome = commands.alignctl(*command(1))
    assert outcome.code == 0, outcome.text
    assert f"resuming {run.path} at step 2" in outcome.err
    assert run.read_result() == result
    assert losses() == before


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["megatron", "deepspeed"])
def test_tokens_that_the_model_did_not_have_are_learned_and_come_back(
    workspace: Path, tmp_path: Path, engine: str
) -> None:
    """Marks of turns, as chat models are given them; transformers finds the row of each.

    The second mark is what every answer begins with: after training it is what comes first.
    """
    tokenizer = AutoTokenizer.from_pretrained(tiny.write_tokenizer(tmp_path / "larger"))
    assert tokenizer.add_tokens(["<|ask|>", "<|say|>"]) == 2
    tokenizer.save_pretrained(tmp_path / "larger")
    rows = [{"prompt": f"<|ask|>{n}", "response": f"<|say|>{n}"} for n in range(40)]
    data = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    given = {"data": data, "tokenizer": tmp_path / "larger"}
    run, hf = tmp_path / "run", tmp_path / "hf"
    steps = ("train.steps=60", "checkpoint.save_interval=100")
    settings = ("extra_vocab_size=2", f"engine={engine}", *steps)
    outcome = commands.alignctl(*sft(workspace, run, *settings, **given))
    assert outcome.code == 0, outcome.text
    assert f"vocabulary {tiny.VOCABULARY} -> {tiny.VOCABULARY + 2}" in outcome.err
    if engine == "deepspeed":
        hf = RunFolder(run).checkpoints / "iter_0000060"
    else:
        outcome = commands.alignctl("convert-mg2hf", "--load", run, "--save", hf)
        assert outcome.code == 0, outcome.text
    model = AutoModelForCausalLM.from_pretrained(hf)
    asked = AutoTokenizer.from_pretrained(hf)("<|ask|>7", return_tensors="pt")["input_ids"]
    assert asked[0, 0] == tiny.VOCABULARY
    assert model(asked).logits[0, -1].argmax() == tiny.VOCABULARY + 1


@pytest.mark.slow
def test_packing_the_rows_of_a_step_changes_nothing_but_its_shape(
    workspace: Path, tmp_path: Path
) -> None:
    """The same rows in each step, so the same losses and norms, but for the order of sums."""
    courses = []
    for packing in ("none", "step"):
        output = tmp_path / packing
        outcome = commands.alignctl(*sft(workspace, output, f"data.packing={packing}"))
        assert outcome.code == 0, outcome.text
        assert "course: 4 steps of 4 rows, 0.44 passes over 36;" in outcome.err
        courses.append(recorded(RunFolder(output), until=4))
    assert len(courses[0]) > 4
    for one, other in zip(*courses, strict=True):
        for name in {"loss", "grad_norm", "tokens", "token_accuracy"} & one.keys():
            assert other[name] == pytest.approx(one[name], rel=1e-5)


@pytest.mark.parametrize(
    ("flags", "override", "words"),
    [
        ({"nproc": 1}, "train.steps=4", "was saved at another layout: dp=2 -> 1;"),
        ({}, "parallel.tp=2", "was saved at another layout: tp=1 -> 2, dp=2 -> 1;"),
        ({}, "parallel.distributed_optimizer=true", "distributed_optimizer=False -> True;"),
    ],
)
def test_a_run_is_not_resumed_at_another_layout(
    alignctl: Alignctl,
    workspace: Path,
    unfinished: RunFolder,
    flags: dict[str, object],
    override: str,
    words: str,
) -> None:
    before = snapshot(unfinished.path)
    said = refused(alignctl(*sft(workspace, unfinished.path, override, **flags)))
    assert words in said
    assert "hint: give the same layout, or start a new run from its weights: --load RUN" in said
    assert snapshot(unfinished.path) == before


def test_a_run_is_not_resumed_with_other_rows(
    alignctl: Alignctl, workspace: Path, unfinished: RunFolder
) -> None:
    rows = workspace / "train.jsonl"
    content = rows.read_bytes()
    rows.write_bytes(content + b'{"query": "one more", "response": "row"}\n')
    try:
        said = refused(alignctl(*sft(workspace, unfinished.path)))
    finally:
        rows.write_bytes(content)
    assert f"{rows}: the rows or the tokenizer have changed since this run was started" in said
    assert f"--load {unfinished.path} --output NEW" in said
    assert unfinished.latest_step() == 4


def test_a_run_is_not_resumed_from_a_damaged_checkpoint(
    alignctl: Alignctl, workspace: Path, unfinished: RunFolder
) -> None:
    file = unfinished.checkpoints / "iter_0000004/__1_0.distcp"
    file.write_bytes(file.read_bytes()[:-1])
    said = refused(alignctl(*sft(workspace, unfinished.path)))
    assert "alignctl.json recorded" in said
    assert "or use an older one" in said


def test_a_flipped_bit_is_found_by_the_ranks_before_they_train(
    workspace: Path, unfinished: RunFolder
) -> None:
    unfinished.checkpoints.joinpath("latest_checkpointed_iteration.txt").write_text("2")
    file = unfinished.checkpoints / "iter_0000002/__1_0.distcp"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    said = refused(commands.alignctl(*sft(workspace, unfinished.path)))
    assert f"{file}: its checksum differs from the one in alignctl.json" in said
    assert unfinished.latest_step() == 2


@pytest.mark.parametrize(
    "pointer",
    [
        pytest.param(2, id="before the pointer moved"),
        pytest.param(4, id="before the result", marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_at_its_very_end_comes_to_the_same_end(
    workspace: Path, unfinished: RunFolder, pointer: int
) -> None:
    """Its last checkpoint is complete; the pointer to it, or only the result, was not written."""
    (unfinished.checkpoints / "latest_checkpointed_iteration.txt").write_text(str(pointer))
    (unfinished.checkpoints / ".iter_0000002.removed").mkdir()
    outcome = commands.alignctl(*sft(workspace, unfinished.path))
    assert outcome.code == 0, outcome.text
    result = unfinished.read_result()
    assert result == RunFolder(unfinished.path.with_name("run.kept")).read_result()
    assert result is not None
    assert result["steps"] == 4
    assert result["first_validation_loss"] > result["validation"]["loss"]
    assert sorted(path.name for path in unfinished.checkpoints.iterdir()) == [
        "iter_0000002",
        "iter_0000004",
        "latest_checkpointed_iteration.txt",
    ]
    assert unfinished.latest_step() == 4


def test_a_loss_that_is_not_finite_names_step_and_rows_and_keeps_the_last_checkpoint(
    workspace: Path, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    large = ["optimizer.lr=10", "optimizer.weight_decay=1e9", "optimizer.warmup_steps=0"]
    overrides = [*large, "checkpoint.save_interval=1"]
    said = refused(commands.alignctl(*sft(workspace, run.path, *overrides)), code=1)
    # Such weights overflow to NaN at once, or to zeros first: processors differ.
    found = re.search(r"error: step ([23]): the \w+( \w+)* is (nan|inf)", said)
    assert found is not None, said
    last = int(found[1]) - 1
    assert f"the last checkpoint is {run.checkpoints}/iter_{last:07d}" in said
    assert f"  rows of the batch: {workspace}/train.jsonl:" in said
    assert "hint: lower optimizer.lr" in said
    assert run.latest_step() == last
    assert run.read_result() is None


@pytest.mark.slow
def test_weights_that_are_not_finite_are_named_before_the_first_step(
    workspace: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(workspace / "hf", tmp_path / "hf")
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    run = RunFolder(tmp_path / "run")
    said = refused(commands.alignctl(*sft(workspace, run.path, load=model)))
    assert f"{model}/model.safetensors: model.norm.weight: 1 of 32 values are infinite" in said
    assert "hint: the weights are damaged" in said
    assert run.latest_checkpoint() is None


def test_a_full_disk_leaves_nothing_of_data_that_was_being_prepared(
    workspace: Path, tmp_path: Path
) -> None:
    disk, left = tmp_path / "disk", tmp_path / "left"
    outcome = alignctl_on_full_disk(disk, "40k", left, sft(workspace, disk / "run"))
    said = refused(outcome, code=1)
    assert f"{disk}/run/data: prepared data could not be written: No space left on device" in said
    assert list(left.iterdir()) == []


@pytest.mark.parametrize(
    ("engine", "size"),
    [
        ("megatron", "1000k"),
        *(
            pytest.param(engine, size, marks=pytest.mark.slow)
            for engine, sizes in {
                "megatron": ("1100k", "1150k"),
                "deepspeed": ("900k", "1000k"),
            }.items()
            for size in sizes
        ),
    ],
)
def test_a_full_disk_leaves_the_checkpoints_that_were_there(
    workspace: Path, tmp_path: Path, engine: str, size: str
) -> None:
    """It is full in the middle of a tensor, or between the files, of the second checkpoint."""
    disk, left = tmp_path / "disk", tmp_path / "left"
    arguments = sft(workspace, disk / "run", f"engine={engine}")
    said = refused(alignctl_on_full_disk(disk, size, left, arguments), code=1)
    assert f"no space left on device while writing {disk}/run/" in said
    assert f"{int(size[:-1]) * 1024:,} bytes are free on the disk at {disk}; " in said
    assert f"{disk}/run/checkpoints/iter_0000002 is whole" in said
    assert "start the same command again: it goes on from there" in said
    run = RunFolder(left / "run")
    assert run.latest_step() == 2
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [
        "iter_0000002",
        "latest_checkpointed_iteration.txt",
    ]


def test_a_second_launcher_on_the_same_folder_is_refused(
    finished_and_rival: tuple[Path, commands.Outcome],
) -> None:
    run, rival = finished_and_rival
    assert f"{run} is in use by another launcher (process " in refused(rival)


@pytest.mark.slow
def test_bf16_runs_where_there_is_no_gpu_and_keeps_one_checkpoint_and_its_tokenizer(
    workspace: Path, tmp_path: Path
) -> None:
    tokenizer = tiny.write_tokenizer(tmp_path / "tokenizer")
    (tokenizer / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    run = RunFolder(tmp_path / "run")
    preset = tiny.preset()["sft"] | {
        "precision": "bf16",
        "checkpoint": {"save_interval": 1, "keep": 1},
    }
    file = tiny.write_preset(tmp_path / "bf16.yaml", sft=preset)
    outcome = commands.alignctl(*sft(workspace, run.path, preset=file, tokenizer=tokenizer))
    assert outcome.code == 0, outcome.text
    assert [path.name for path in run.checkpoints.glob("iter_*")] == ["iter_0000004"]
    saved = run.checkpoints / "iter_0000004/hf"
    assert (saved / "chat_template.jinja").read_bytes() == (
        tokenizer / "chat_template.jinja"
    ).read_bytes()
