"""What is compared between nodes and ranks: what decides the numbers of a run, and no more."""

from pathlib import Path

import pytest

from alignctl.config.on_policy_run import GRPOConfig
from alignctl.launch.fingerprint import find_differences, fingerprint
from alignctl.run_folder import RunFolder
from tests.on_policy import scripted

SOURCE = "def score(prompt, completion, row):\n    return 1.0\n"


@pytest.fixture
def reward(tmp_path: Path) -> Path:
    file = tmp_path / "brevity.py"
    file.write_text(SOURCE)
    return file


def run(reward: Path) -> tuple[GRPOConfig, RunFolder]:
    functions = [{"file": reward}, {"url": "http://127.0.0.1:1/score", "label": "far"}]
    config = scripted.config(reward.parent, score={"functions": functions})
    return config, RunFolder(reward.parent / "run")


def test_a_stale_copy_of_a_reward_is_told_by_its_name(reward: Path) -> None:
    here = fingerprint(*run(reward))
    assert find_differences(here, fingerprint(*run(reward))) == []
    reward.write_text(SOURCE.replace("1.0", "2.0"))
    [(name, ours, theirs)] = find_differences(here, fingerprint(*run(reward)))
    assert name == f"content of {reward}"
    assert len({ours, theirs, "absent"}) == 3
    reward.unlink()
    assert find_differences(here, fingerprint(*run(reward))) == [(name, ours, "absent")]
