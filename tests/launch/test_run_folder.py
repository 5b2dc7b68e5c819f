from pathlib import Path

import pytest

from alignctl.errors import UserError
from alignctl.run_folder import LATEST, RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    return folder


def test_without_a_pointer_there_is_no_checkpoint(folder: RunFolder) -> None:
    (folder.checkpoints / "iter_0000100").mkdir()  # as a killed save leaves it
    assert folder.latest_checkpoint() is None
    assert folder.latest_step() == 0


def test_the_pointer_names_the_newest_checkpoint(folder: RunFolder) -> None:
    (folder.checkpoints / "iter_0000100").mkdir()
    (folder.checkpoints / LATEST).write_text("100\n")
    assert folder.latest_checkpoint() == folder.checkpoints / "iter_0000100"
    assert folder.latest_step() == 100


@pytest.mark.parametrize(
    ("text", "message"), [("soon", "reads 'soon'"), ("7", "names iter_0000007, which is not there")]
)
def test_a_pointer_to_nowhere_is_an_error(folder: RunFolder, text: str, message: str) -> None:
    (folder.checkpoints / LATEST).write_text(text)
    with pytest.raises(UserError, match=message):
        folder.latest_checkpoint()


def test_a_result_is_read_back(folder: RunFolder) -> None:
    assert folder.read_result() is None
    folder.write_result({"step": 3, "checkpoint": "checkpoints/iter_0000003"})
    assert folder.read_result() == {"step": 3, "checkpoint": "checkpoints/iter_0000003"}


def test_a_folder_without_a_configuration_is_not_a_run(folder: RunFolder) -> None:
    with pytest.raises(UserError, match=r"is not a run folder: it has no config.json"):
        folder.read_config()


@pytest.mark.parametrize("text", ["{", "[1]", "\x00"])
def test_a_damaged_configuration_is_named(folder: RunFolder, text: str) -> None:
    folder.config.write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        folder.read_config()
