"""A data set by its name, from the command line to the rows that a job has learned from."""

from pathlib import Path

import pytest

from alignctl.run_folder import RunFolder
from tests import commands, tiny
from tests.sources.hub_server import Repo, serving

pytestmark = pytest.mark.ci


def test_a_run_learns_from_a_name_and_goes_on_without_the_hub(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes know the hub by the variable that a user would set for a mirror."""
    rows = tiny.write_rows(tmp_path / "rows.jsonl").read_bytes()
    held_out = b"".join(rows.splitlines(keepends=True)[:2])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    given = ["sft", "--preset", workspace / "tiny.yaml", "--load", workspace / "hf"]
    given += ["--data", "some/sums", "--output", "runs/sums"]
    with serving({"some/sums": Repo({"train.jsonl": rows, "dev.jsonl": held_out})}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        shown = commands.alignctl(*given, "--dry-run")
        assert "note: some/sums: not found here, so it would be fetched from" in shown.err
        assert hub.asked == []
        assert not Path("runs").exists()
        first = commands.alignctl(*given, "train.steps=3")
    assert first.code == 0, first.text
    folder = f"runs/.cache/hub/some/sums@{'1' * 40}"
    assert "--data some/sums: 40 rows of train, " in first.err
    assert f"at revision 1111111, in {folder}\n" in first.err
    assert RunFolder(Path("runs/sums")).read_config()["data"]["train"] == folder
    # The server is gone.
    second = commands.alignctl(*given, "train.steps=4")
    assert second.code == 0, second.text
    result = RunFolder(Path("runs/sums")).read_result()
    assert result is not None
    assert result["steps"] == 4
    checked = commands.alignctl(
        *("prepare", "check", "sft", "some/sums", "--preset", workspace / "tiny.yaml"),
        *("--tokenizer", workspace / "hf"),
    )
    assert checked.code == 0, checked.text
    assert "some/sums: taken as it was fetched before: " in checked.err
    lost = commands.alignctl(*given[:-3], "some/other", "--output", "runs/other")
    assert lost.code == 2
    assert "error: some/other: no such file or folder here, nor was it" in lost.err
