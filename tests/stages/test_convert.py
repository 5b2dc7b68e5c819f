import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from alignctl.run_folder import LATEST
from tests import tiny
from tests.stages.conftest import Alignctl, refused, snapshot
from tests.stages.full_disk import alignctl_on_full_disk

CHECKPOINT = Path("run/checkpoints/iter_0000004")


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda c: flip_a_bit(c / "__0_0.distcp"), "__0_0.distcp: its checksum differs"),
        (lambda c: flip_a_bit(c / "hf/tokenizer.json"), "tokenizer.json: its checksum differs"),
        (lambda c: cut(c / "__0_0.distcp"), "bytes, but alignctl.json recorded"),
        (lambda c: (c / "__1_0.distcp").unlink(), "__1_0.distcp is missing, though alignctl.json"),
        (lambda c: (c / ".metadata").unlink(), ".metadata is missing, though alignctl.json lists"),
        (
            lambda c: (c / "alignctl.json").unlink(),
            "neither alignctl.json nor arguments in common.pt",
        ),
        (lambda c: (c / "alignctl.json").write_text("{"), "alignctl.json: the file: Invalid JSON"),
        (shutil.rmtree, f"{LATEST} names iter_0000004, which is not there"),
        (lambda c: (c.parent / LATEST).write_bytes(b"\xff4"), "is neither an iteration nor"),
        (lambda c: (c.parent / LATEST).unlink(), "run: this run has no checkpoint yet"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_nothing_is_written(
    alignctl: Alignctl,
    finished: Path,
    tmp_path: Path,
    damage: Callable[[Path], object],
    words: str,
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    damage(tmp_path / CHECKPOINT)
    said = refused(alignctl("convert-mg2hf", "--load", tmp_path / "run", "--save", tmp_path / "hf"))
    assert words in said
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_conversion_in_the_wrong_direction_names_the_other_one(
    alignctl: Alignctl, finished: Path
) -> None:
    said = refused(alignctl("convert-mg2hf", "--load", "hf", "--save", "new"))
    assert "hf: this is a Hugging Face folder already" in said
    assert "hint: the other direction is alignctl convert-hf2mg --load hf --save DIR" in said
    said = refused(alignctl("convert-hf2mg", "--load", finished, "--save", "new"))
    assert "this is a Megatron checkpoint already" in said
    assert not Path("new").exists()


def test_a_target_that_is_taken_is_kept(alignctl: Alignctl, workspace: Path) -> None:
    before = snapshot(workspace)
    for target in ("bloom", "tiny.yaml"):
        said = refused(alignctl("convert-hf2mg", "--load", "hf", "--save", target))
        assert f"{target} exists already and is not empty" in said
    said = refused(alignctl("convert-hf2mg", "--load", "hf", "--save", "tiny.yaml/mg"))
    assert "tiny.yaml/mg: cannot be written: Not a directory" in said
    assert snapshot(workspace) == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--preset", "bloom.yaml"], "the preset and hf describe different models"),
        (["--tp", "4"], "model.num_query_groups 2 is not divisible by --tp 4"),
        (["--pp", "3"], "model.num_layers 2 is not divisible by --pp 3"),
        (["--tokenizer", "nowhere"], "nowhere: no such tokenizer folder"),
        (["--dtype", "fp8"], "'fp8' is not one of 'keep', 'fp32', 'bf16', 'fp16'"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    alignctl: Alignctl, workspace: Path, flags: list[str], words: str
) -> None:
    before = snapshot(workspace)
    said = refused(alignctl("convert-hf2mg", "--load", "hf", "--save", "new", *flags))
    assert words in said
    assert snapshot(workspace) == before


@pytest.mark.parametrize("size", ["40k", "100k", "180k"])
def test_a_full_disk_leaves_nothing_of_a_megatron_checkpoint(
    workspace: Path, tmp_path: Path, size: str
) -> None:
    disk, left = tmp_path / "disk", tmp_path / "left"
    arguments: list[object] = ["convert-hf2mg", "--load", workspace / "hf", "--save", disk / "mg"]
    said = refused(alignctl_on_full_disk(disk, size, left, arguments), code=1)
    what, hint = said.splitlines()
    assert what.startswith(
        f"error: no space left on device while writing {disk / 'mg'}; what was written is removed, "
    )
    assert what.endswith(f" bytes are free on the disk at {disk} now")
    assert hint == "hint: free some space and start again"
    assert list(left.iterdir()) == []


def test_a_full_disk_leaves_nothing_of_a_hugging_face_folder(
    finished: Path, tmp_path: Path
) -> None:
    disk, left = tmp_path / "disk", tmp_path / "left"
    arguments: list[object] = ["convert-mg2hf", "--load", finished, "--save", disk / "hf"]
    said = refused(alignctl_on_full_disk(disk, "60k", left, arguments), code=1)
    assert "no space left on device while writing" in said
    assert list(left.iterdir()) == []


def test_what_a_killed_conversion_has_left_is_replaced(alignctl: Alignctl, tmp_path: Path) -> None:
    left = tmp_path / ".mg.partial"
    left.mkdir()
    (left / "half").touch()
    assert alignctl("convert-hf2mg", "--load", "hf", "--save", tmp_path / "mg").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["mg"]
    assert not (tmp_path / "mg/half").exists()


def test_another_tokenizer_takes_the_place_of_the_models_own_and_the_config_stays(
    alignctl: Alignctl, workspace: Path, tmp_path: Path
) -> None:
    tokenizer = tiny.write_tokenizer(tmp_path / "tokenizer")
    (tokenizer / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "model_max_length": 7})
    )
    (tokenizer / "config.json").write_text("{}")
    (tokenizer / "chat_template.jinja").write_text("{{ messages }}")
    flags = ["--load", "hf", "--save", tmp_path / "mg", "--tokenizer", tokenizer]
    assert alignctl("convert-hf2mg", *flags).code == 0
    back = alignctl("convert-mg2hf", "--load", tmp_path / "mg", "--save", tmp_path / "hf")
    assert back.out == f"{tmp_path / 'hf'}\n"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "hf" / name).read_bytes() == (tokenizer / name).read_bytes()
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "hf" / name).read_bytes() == (workspace / "hf" / name).read_bytes()
