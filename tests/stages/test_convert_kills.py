"""`kill -9` in the middle of a conversion: its target is absent, or complete and right."""

import random
import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from alignctl.checkpoints import manifest
from alignctl.checkpoints.comparison import compare
from alignctl.checkpoints.find import find
from alignctl.config.sections import Model
from tests import commands
from tests.checkpoints.folders import random_weights, write_hf

pytestmark = [pytest.mark.ci, pytest.mark.timeout(1800)]

TARGETS: dict[str, list[object]] = {
    "hf": ["convert-mg2hf", "--max-shard-size", "20MB"],
    "mcore": ["convert-hf2mg"],
    "legacy": ["convert-hf2mg", "--format", "legacy", "--tp", 2, "--pp", 2],
}


@dataclass(frozen=True)
class Setting:
    """A model of 260 MB in two formats."""

    hf: Path
    mcore: Path
    num_bytes: int

    def start(self, target: str, save: Path) -> "subprocess.Popen[str]":
        load = self.mcore if target == "hf" else self.hf
        flags = ["--load", load, "--save", save, "--verify", "none"]
        return commands.start(*TARGETS[target], *flags)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = tmp_path_factory.mktemp("kills")
    model = Model(
        family="llama2",
        num_layers=4,
        hidden_size=1024,
        num_attention_heads=8,
        num_query_groups=4,
        ffn_hidden_size=3072,
        vocab_size=8000,
        max_position_embeddings=64,
        rotary_base=10000.0,
        tie_embeddings=False,
    )
    hf, mcore = folder / "hf", folder / "mg"
    write_hf(hf, model, random_weights(model, torch.float32), max_shard_bytes=10**8)
    setting = Setting(hf, mcore, num_bytes(hf))
    outcome = commands.finish(setting.start("mcore", mcore))
    assert outcome.code == 0, outcome.text
    return setting


def partials(save: Path) -> list[Path]:
    return list(save.parent.glob(f".{save.name}.*.partial"))


def num_bytes(*folders: Path) -> int:
    """What has been written into folders that may go at any moment."""
    total = 0
    for file in (file for folder in folders for file in folder.rglob("*")):
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def assert_right(setting: Setting, save: Path) -> None:
    found = find(save)
    assert found.manifest is not None
    manifest.verify_checksums(found.path, found.manifest)
    assert compare(find(setting.hf).tensors, found.tensors).is_identical


def kill(setting: Setting, target: str, save: Path, share: float) -> None:
    """Kills a conversion when so much is written; beyond 1, so much later, as a part of a second.

    What an earlier one has left is gone first, so that it is not taken for this one's.
    """
    for left in partials(save):
        shutil.rmtree(left)
    process = setting.start(target, save)
    wanted = min(share, 1.0) * setting.num_bytes
    with suppress(FileNotFoundError):
        while process.poll() is None and not save.exists() and num_bytes(*partials(save)) < wanted:
            time.sleep(0.0005)
    time.sleep(max(0.0, share - 1.0))
    commands.kill_tree(process)


def kill_again_and_again(setting: Setting, target: str, save: Path, num_kills: int) -> int:
    """Kills at random moments; returns how many came before the target had its name."""
    chance = random.Random(f"{target} {num_kills}")
    num_cut = 0
    for number in range(num_kills):
        kill(setting, target, save, chance.uniform(0.01, 0.9 if number == 0 else 1.2))
        scratch = {path.name for path in partials(save)}
        assert len(scratch) <= 1
        names = {path.name for path in save.parent.iterdir()}
        assert names <= {save.name, f".{save.name}.lock", *scratch}
        if save.exists():
            assert_right(setting, save)
            shutil.rmtree(save)
        else:
            num_cut += 1
    return num_cut


def check_target(setting: Setting, target: str, tmp_path: Path, num_kills: int) -> None:
    save = tmp_path / "out"
    assert kill_again_and_again(setting, target, save, num_kills) > 0
    outcome = commands.finish(setting.start(target, save))
    assert outcome.code == 0, outcome.text
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert_right(setting, save)


@pytest.mark.parametrize("target", TARGETS)
def test_a_conversion_that_was_killed_leaves_no_target_and_can_be_repeated(
    target: str, setting: Setting, tmp_path: Path
) -> None:
    check_target(setting, target, tmp_path, 1)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_twenty_kills_at_moments_that_nobody_chose(
    target: str, setting: Setting, tmp_path: Path
) -> None:
    check_target(setting, target, tmp_path, 20)


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.05, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("target", TARGETS)
def test_of_two_conversions_to_one_name_one_is_right_and_one_is_told_so(
    target: str, delay: float, setting: Setting, tmp_path: Path
) -> None:
    """The second begins so many seconds later: while the other starts, writes or has finished."""
    save = tmp_path / "out"
    first = setting.start(target, save)
    time.sleep(delay)
    both = [commands.finish(each) for each in (first, setting.start(target, save))]
    done, second = sorted(both, key=lambda outcome: outcome.code)
    assert done.code == 0, done.text
    if second.code == 0:
        assert f"{save} is there already, whole and from the same" in done.err + second.err
    else:
        assert second.code == 2, second.text
        assert f"{save} is being written by another" in second.err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert_right(setting, save)
