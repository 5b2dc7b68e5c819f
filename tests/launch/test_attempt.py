import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from alignctl.errors import RunError, UserError
from alignctl.launch.attempt import create_or_resume
from alignctl.run_folder import RunFolder


class Optimizer(BaseModel):
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)


class Checkpoint(BaseModel):
    save_interval: int = 10


class Config(BaseModel):
    stage: str = "sft"
    output: str = "runs/a"
    optimizer: Optimizer = Optimizer()
    checkpoint: Checkpoint = Checkpoint()

    def complete(self, recorded: dict[str, Any]) -> dict[str, Any]:
        return recorded


class Train(BaseModel):
    steps: int = 5


class Trained(Config):
    train: Train = Train()


ARGV = ["alignctl", "sft", "--data", "my data"]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "a")


def start(folder: RunFolder, config: Config | None = None, *, resume: bool = True) -> str:
    config = config or Config()
    with create_or_resume(folder.path, config, argv=ARGV, resume=resume) as attempt:
        return attempt.describe()


def test_a_new_folder_says_what_runs_how_and_where(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_value")
    assert start(folder) == f"run folder: {folder.path}"
    assert Config.model_validate_json(folder.config.read_text()) == Config()
    assert folder.command.read_text().splitlines()[1] == "alignctl sft --data 'my data'"
    environment = json.loads(folder.environment.read_text())
    assert environment["attempt"] == 1
    assert environment["packages"]["pydantic"]
    for path in folder.path.rglob("*"):
        assert path.is_dir() or "hf_secret_value" not in path.read_text()


def test_the_same_run_is_resumed_and_rid_of_what_the_last_attempt_left(folder: RunFolder) -> None:
    start(folder)
    left = [folder.stop_file, folder.rank_error(0), folder.rank_reserve(1), folder.rank_ended(1)]
    for path in left:
        path.touch()
    folder.rank_log(0).write_text("kept")
    words = start(folder)
    assert words == (f"resuming {folder.path} from the start, as nothing was saved yet (attempt 2)")
    assert not any(path.exists() for path in left)
    assert folder.rank_log(0).read_text() == "kept"
    assert folder.command.read_text().count("alignctl sft") == 2


def test_what_leaves_the_numbers_alone_may_change(folder: RunFolder) -> None:
    start(folder)
    changed = Config(output="moved", checkpoint=Checkpoint(save_interval=5))
    start(folder, changed)
    assert Config.model_validate_json(folder.config.read_text()) == changed


def test_a_model_that_learns_nothing_may_be_laid_out_anew(folder: RunFolder) -> None:
    def laid_out(**sizes: int) -> Config:
        class Roles(Config):
            roles: dict[str, dict[str, int]] = {
                role: {"tp": sizes.get(role, 1)} for role in ("reward", "reference", "value")
            }

        return Roles()

    start(folder, laid_out())
    assert start(folder, laid_out(reward=2, reference=2)).startswith("resuming ")
    with pytest.raises(UserError, match=r"differ:\n  roles.value.tp: 1 -> 2\Z"):
        start(folder, laid_out(reward=4, value=2))


@pytest.mark.parametrize("is_finished", [False, True])
def test_a_run_may_be_made_longer_and_not_shorter(folder: RunFolder, is_finished: bool) -> None:
    start(folder, Trained(train=Train(steps=5)))
    if is_finished:
        folder.write_result({"steps": 5})
    with pytest.raises(UserError, match=r"train\.steps: 5 -> 4"):
        start(folder, Trained(train=Train(steps=4)))
    assert folder.result.exists() == is_finished
    assert start(folder, Trained(train=Train(steps=6))).startswith("resuming ")
    assert folder.read_result() is None
    assert folder.read_config()["train"] == {"steps": 6}


def test_a_longer_run_with_another_setting_is_another_run(folder: RunFolder) -> None:
    start(folder, Trained(train=Train(steps=5)))
    with pytest.raises(UserError, match=r"lr: 0\.1 -> 0\.2\n  train\.steps: 5 -> 6"):
        start(folder, Trained(optimizer=Optimizer(lr=0.2), train=Train(steps=6)))


def test_another_runs_folder_is_refused_with_all_that_differs(folder: RunFolder) -> None:
    start(folder)
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    changed = Config(stage="dpo", optimizer=Optimizer(lr=0.2))
    with pytest.raises(UserError) as caught:
        start(folder, changed)
    assert caught.value.message.splitlines() == [
        f"{folder.path} holds another run; these settings differ:",
        '  stage: "sft" -> "dpo"',
        "  optimizer.lr: 0.1 -> 0.2",
    ]
    assert "choose another --output" in (caught.value.hint or "")
    assert {path: path.read_bytes() for path in before} == before


def test_settings_that_only_one_side_knows_differ_too(folder: RunFolder) -> None:
    class Newer(Config):
        dropout: float | None = None

    start(folder)
    with pytest.raises(UserError, match="dropout: absent -> null"):
        start(folder, Newer())


def test_no_resume_refuses_an_existing_run_and_takes_a_new_folder(folder: RunFolder) -> None:
    start(folder, resume=False)
    with pytest.raises(UserError, match="holds this run already, and --no-resume was given"):
        start(folder, resume=False)


def test_a_finished_run_is_left_alone(folder: RunFolder) -> None:
    start(folder)
    folder.write_result({})
    command = folder.command.read_text()
    assert "finished; choose another --output" in start(folder)
    assert folder.command.read_text() == command


def test_a_folder_with_other_things_is_refused_and_an_empty_one_taken(folder: RunFolder) -> None:
    folder.path.mkdir(parents=True)
    stranger = folder.path / "thesis.tex"
    stranger.touch()
    with pytest.raises(UserError, match=r"not a run folder, .* it holds thesis.tex"):
        start(folder)
    assert list(folder.path.iterdir()) == [stranger]
    stranger.unlink()
    start(folder)


def test_a_model_is_not_taken_for_a_run_although_it_has_a_config_too(folder: RunFolder) -> None:
    folder.path.mkdir(parents=True)
    folder.config.write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match=r"not a run folder, .* it holds config.json"):
        start(folder)
    assert list(folder.path.iterdir()) == [folder.config]


def test_a_launcher_killed_before_it_wrote_the_configuration_blocks_nothing(
    folder: RunFolder,
) -> None:
    folder.path.mkdir(parents=True)
    (folder.path / ".launcher_0.lock").touch()
    (folder.path / ".config.json.123.partial").touch()
    assert start(folder) == f"run folder: {folder.path}"


def test_a_file_as_output_is_refused(folder: RunFolder) -> None:
    folder.path.parent.mkdir()
    folder.path.touch()
    with pytest.raises(UserError, match="is a file"):
        start(folder)
    with pytest.raises(UserError, match=r"cannot prepare the run folder .* Not a directory"):
        start(RunFolder(folder.path / "deeper"))


def test_a_second_launcher_is_refused_until_the_first_is_done(folder: RunFolder) -> None:
    holder = f"process {os.getpid()} on "
    with (
        create_or_resume(folder.path, Config(), argv=ARGV),
        pytest.raises(UserError, match=rf"in use by another launcher \({holder}"),
    ):
        start(folder)
    start(folder)


def test_errors_of_the_block_are_not_blamed_on_the_folder(folder: RunFolder) -> None:
    with pytest.raises(OSError, match="mine"), create_or_resume(folder.path, Config(), argv=ARGV):
        raise OSError("mine")


def test_other_nodes_wait_for_node_0_and_hold_locks_of_their_own(folder: RunFolder) -> None:
    def start_node_0() -> None:
        time.sleep(0.1)
        with create_or_resume(folder.path, Config(), argv=ARGV):
            is_done.wait()

    is_done = threading.Event()
    node_0 = threading.Thread(target=start_node_0)
    node_0.start()
    try:
        with create_or_resume(
            folder.path, Config(), argv=ARGV, node_rank=1, resume=False
        ) as attempt:
            assert attempt.state == "new"
    finally:
        is_done.set()
        node_0.join()
    assert folder.command.read_text().count("alignctl") == 1


def test_another_node_with_other_settings_is_refused(folder: RunFolder) -> None:
    start(folder)
    changed = Config(optimizer=Optimizer(lr=0.2))
    with (
        pytest.raises(UserError, match=r"optimizer.lr: 0.1 -> 0.2"),
        create_or_resume(folder.path, changed, argv=ARGV, node_rank=1),
    ):
        pass


def test_another_node_does_not_wait_for_ever(folder: RunFolder) -> None:
    with (
        pytest.raises(RunError, match=r"node 0 has not created .*config.json within 0 seconds"),
        create_or_resume(folder.path, Config(), argv=ARGV, node_rank=1, wait_seconds=0),
    ):
        pass
