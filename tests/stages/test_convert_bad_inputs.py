"""What a conversion is given that it cannot do: one message each, and nothing is left behind."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests import commands, tiny
from tests.checkpoints.corruptions import POINTER
from tests.stages.conftest import Alignctl, refused, snapshot
from tests.stages.full_disk import alignctl_on_full_disk

LEGACY = ["--format", "legacy", "--tp", "2", "--pp", "2", "--verify", "none"]
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def legacy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model by rank, TP 2 and PP 2, without a manifest, as others would have written it."""
    folder = tmp_path_factory.mktemp("legacy")
    tiny.write_model(folder / "hf")
    load = ["--load", folder / "hf", "--save", folder / "mg"]
    outcome = commands.alignctl("convert-hf2mg", *load, *LEGACY)
    assert outcome.code == 0, outcome.text
    (folder / "mg/release/alignctl.json").unlink()
    return folder / "mg"


@pytest.fixture
def model(workspace: Path, tmp_path: Path) -> Path:
    """A copy of a Hugging Face folder, to be damaged."""
    return Path(shutil.copytree(workspace / "hf", tmp_path / "in"))


# ---- Hugging Face folders ----


def change(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def configure(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def shard(folder: Path, *, twice: bool = False, missing: bool = False) -> None:
    """Two files and an index; one tensor in both, or the second file gone."""
    weights = list(load_file(folder / "model.safetensors").items())
    (folder / "model.safetensors").unlink()
    parts = {"a.safetensors": dict(weights[::2]), "b.safetensors": dict(weights[1::2])}
    places = {name: file for file, part in parts.items() for name in part}
    if twice:
        parts["b.safetensors"] |= dict(weights[:1])
    for file, part in parts.items():
        save_file(part, folder / file)
    if missing:
        (folder / "b.safetensors").unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


def as_bin(folder: Path, content: object) -> None:
    (folder / "model.safetensors").unlink()
    if isinstance(content, bytes):
        (folder / "pytorch_model.bin").write_bytes(content)
    else:
        torch.save(content, folder / "pytorch_model.bin")


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: configure(f, model_type="gpt2"), "model_type = 'gpt2' is not supported"),
        (lambda f: configure(f, num_hidden_layers=3), "tensors are missing, the first is 'model."),
        (lambda f: configure(f, num_hidden_layers=1), "9 tensors do not belong to a llama2 model"),
        (lambda f: configure(f, vocab_size=262), "but the model's config asks for [262, 32]"),
        (lambda f: configure(f, intermediate_size=65), "but the model's config asks for [65, 32]"),
        (lambda f: configure(f, hidden_size="32"), "config.json: "),
        (
            lambda f: configure(f, rope_parameters=[1]),
            "config.json: rope_parameters = [1] is no",
        ),
        (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json: nested too deeply"),
        (lambda f: (f / "config.json").write_bytes(b"\xff"), "config.json: not UTF-8 text"),
        (lambda f: change(f, lambda w: w.pop(NORM)), "1 of 21 tensors are missing, the first is"),
        (
            lambda f: change(f, lambda w: w.update(extra=torch.ones(1))),
            "1 tensors do not belong to a llama2 model, the first is 'extra'",
        ),
        (
            lambda f: change(f, lambda w: w[NORM].fill_(torch.nan)),
            f"{NORM}: 32 of 32 values are infinite or NaN",
        ),
        (lambda f: shard(f, twice=True), "b.safetensors: holds tensor"),
        (lambda f: shard(f, missing=True), f"{INDEX}: shard b.safetensors is missing"),
        (
            lambda f: as_bin(f, {"score.weight": torch.ones(1), "v_head.weight": torch.ones(1)}),
            "v_head.weight: the same weight as",
        ),
        (lambda f: as_bin(f, b"no checkpoint"), "pytorch_model.bin: not a readable PyTorch file"),
        (lambda f: as_bin(f, POINTER), "pytorch_model.bin: a Git-LFS pointer"),
        (lambda f: as_bin(f, b""), "pytorch_model.bin: not a readable PyTorch file"),
        (lambda f: as_bin(f, {"epoch": 3}), "pytorch_model.bin: 'epoch' is no tensor"),
        (lambda f: as_bin(f, {1: torch.ones(1)}), "pytorch_model.bin: 1 is no tensor"),
        (lambda f: as_bin(f, torch.ones(1)), "pytorch_model.bin: holds no weights by name"),
    ],
)
@pytest.mark.parametrize("target", [[], LEGACY])
def test_a_folder_that_is_damaged_or_contradicts_itself(
    alignctl: Alignctl,
    model: Path,
    damage: Callable[[Path], object],
    words: str,
    target: list[str],
) -> None:
    damage(model)
    flags = ["--load", model, "--save", model.with_name("out"), *target]
    assert words in refused(alignctl("convert-hf2mg", *flags))
    assert [path.name for path in model.parent.iterdir()] == ["in"]


def test_a_config_that_was_edited_beside_our_manifest(
    alignctl: Alignctl, legacy: Path, tmp_path: Path
) -> None:
    hf = tmp_path / "hf"
    assert alignctl("convert-mg2hf", "--load", legacy, "--save", hf, "--verify", "none").code == 0
    configure(hf, rms_norm_eps=1e-3)
    said = refused(alignctl("convert-hf2mg", "--load", hf, "--save", tmp_path / "out"))
    assert "alignctl.json and config.json describe different models" in said
    assert "norm_epsilon: 1e-05 != 0.001" in said
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


# ---- checkpoints by rank ----


def rank(folder: Path, name: str) -> Path:
    return folder / "release" / f"mp_rank_{name}" / "model_optim_rng.pt"


def swap(first: Path, second: Path) -> None:
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tree = torch.load(file, weights_only=False)
    change(tree)
    torch.save(tree, file)


def leave_out_a_tensor_rank(folder: Path) -> None:
    for stage in ("000", "001"):
        shutil.rmtree(rank(folder, f"01_{stage}").parent)


def leave_out_the_output(folder: Path) -> None:
    for tensor_rank in ("00", "01"):
        file = rank(folder, f"{tensor_rank}_001")
        edit(file, lambda tree: tree["model"]["language_model"].pop("output_layer"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda f: shutil.rmtree(rank(f, "01_001").parent),
            "mp_rank_01_001 is missing; there are 3 of 2 x 2 ranks",
        ),
        (
            leave_out_a_tensor_rank,
            "tell of tensor_model_parallel_size 2, but there are folders for 1",
        ),
        (lambda f: rank(f, "00_001").unlink(), "neither model_optim_rng.pt nor model_rng.pt"),
        (
            lambda f: swap(rank(f, "00_000"), rank(f, "00_001")),
            "not a weight of pipeline stage",
        ),
        (
            lambda f: shutil.copy(rank(f, "00_000"), rank(f, "00_001")),
            "word_embeddings.weight: not a weight of pipeline stage 1",
        ),
        (
            lambda f: edit(rank(f, "00_000"), lambda t: t.update(args=None)),
            "no `args` in it, which tell the architecture",
        ),
        (lambda f: edit(rank(f, "01_000"), dict.clear), "no `model` in it"),
        (
            lambda f: edit(rank(f, "00_000"), lambda t: t.update(checkpoint_version=[3])),
            "release: not a checkpoint of Megatron's",
        ),
        (
            lambda f: edit(rank(f, "00_000"), lambda t: setattr(t["args"], "rotary_base", "x")),
            "its arguments describe no model",
        ),
        (
            leave_out_the_output,
            "no output_layer.weight in it, which its arguments tell of",
        ),
        (lambda f: rank(f, "01_001").write_bytes(POINTER), "a Git-LFS pointer"),
    ],
)
@pytest.mark.parametrize("command", ["convert-mg2hf", "convert-mg2mg"])
def test_a_checkpoint_by_rank_that_is_incomplete_or_mixed(
    alignctl: Alignctl,
    legacy: Path,
    tmp_path: Path,
    damage: Callable[[Path], object],
    words: str,
    command: str,
) -> None:
    load = Path(shutil.copytree(legacy, tmp_path / "in"))
    damage(load)
    assert words in refused(alignctl(command, "--load", load, "--save", tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_ranks_of_another_model_are_not_joined(
    alignctl: Alignctl, workspace: Path, legacy: Path, tmp_path: Path
) -> None:
    """A Bloom of the same layout: its weights are of other shapes and have other names."""
    other, load = tmp_path / "other", Path(shutil.copytree(legacy, tmp_path / "in"))
    flags = ["--load", workspace / "bloom", "--save", other, *LEGACY]
    assert alignctl("convert-hf2mg", *flags).code == 0
    shutil.copy(rank(other, "01_000"), rank(load, "01_000"))
    said = refused(alignctl("convert-mg2hf", "--load", load, "--save", tmp_path / "out"))
    assert f"{load / 'release'}: " in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "other"]


# ---- where it reads and writes ----


@pytest.mark.parametrize(
    ("save", "words"),
    [
        ("in", "exists already and is not empty"),
        ("in/config.json", "lies in --load"),
        ("in/mg", "lies in --load"),
    ],
)
def test_a_target_that_is_the_source_or_in_it_is_refused(
    alignctl: Alignctl, model: Path, save: str, words: str
) -> None:
    before = snapshot(model)
    flags = ["--load", model, "--save", model.parent / save]
    assert words in refused(alignctl("convert-hf2mg", *flags))
    assert snapshot(model) == before


def test_a_config_that_describes_another_model_than_the_weights_is_named(
    alignctl: Alignctl, legacy: Path, tmp_path: Path
) -> None:
    """It is taken along as it is, and what was written could not be read as the same model."""
    load = Path(shutil.copytree(legacy, tmp_path / "in"))
    file = load / "release/hf/config.json"
    config = json.loads(file.read_text("utf-8"))
    wrong: list[tuple[object, str]] = [
        ([[]], "no base of rotary positions"),
        (20000.0, "another model than the weights"),
    ]
    for theta, words in wrong:
        changed = config | {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}
        file.write_text(json.dumps(changed), encoding="utf-8")
        said = refused(alignctl("convert-mg2hf", "--load", load, "--save", tmp_path / "out"))
        assert f"{file}: " in said
        assert words in said
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_role_that_the_model_does_not_have(alignctl: Alignctl, model: Path) -> None:
    flags = ["--load", model, "--save", model.with_name("out"), "--role", "reward"]
    said = refused(alignctl("convert-hf2mg", *flags))
    assert "--role reward was asked for, but this is a policy model" in said
    assert [path.name for path in model.parent.iterdir()] == ["in"]


POWERS = "-dac_override,-dac_read_search"
POWERLESS = ["setpriv", f"--bounding-set={POWERS}", f"--inh-caps={POWERS}"]
"""In front of a command: root gives up the right to read and write everything."""
if os.geteuid() != 0:
    POWERLESS = []


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_source_that_may_not_be_read_is_named(model: Path, name: str) -> None:
    (model / name).chmod(0)
    flags = ["--load", model, "--save", model.with_name("out"), "--verify", "none"]
    said = refused(commands.alignctl("convert-hf2mg", *flags, prefix=POWERLESS))
    (model / name).chmod(0o755)
    assert f"{model / name}: cannot be read: permission denied" in said.lower()
    assert [path.name for path in model.parent.iterdir()] == ["in"]


def test_a_target_that_may_not_be_written(model: Path) -> None:
    room = model.with_name("room")
    room.mkdir(mode=0o555)
    flags = ["--load", model, "--save", room / "out"]
    said = refused(commands.alignctl("convert-hf2mg", *flags, prefix=POWERLESS))
    assert f"{room / 'out'}: cannot be written: Permission denied" in said
    assert list(room.iterdir()) == []


@pytest.mark.parametrize(
    ("size", "target"), [("100k", []), ("40k", LEGACY), ("120k", LEGACY), ("180k", LEGACY)]
)
def test_a_full_disk_leaves_nothing_of_another_layout(
    legacy: Path, tmp_path: Path, size: str, target: list[str]
) -> None:
    disk, left = tmp_path / "disk", tmp_path / "left"
    arguments: list[object] = ["convert-mg2mg", "--load", legacy, "--save", disk / "mg", *target]
    said = refused(alignctl_on_full_disk(disk, size, left, arguments), code=1)
    what, hint = said.splitlines()
    assert what.startswith(
        f"error: no space left on device while writing {disk / 'mg'}; what was written is removed, "
    )
    assert what.endswith(f" bytes are free on the disk at {disk} now")
    assert hint == "hint: free some space and start again"
    assert list(left.iterdir()) == []
