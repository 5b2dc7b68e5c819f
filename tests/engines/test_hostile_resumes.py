"""Resuming runs nothing that a checkpoint holds: hostile files of each kind in each place."""

from pathlib import Path

import pytest

from tests import tiny
from tests.engines import hostile_resumes

HARMLESS = ("hf/", "config", "tokenizer", "generation_config", "metadata.json")


@pytest.mark.slow  # half a minute of a job for each kind
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", hostile_resumes.KINDS)
def test_no_file_of_a_checkpoint_runs_code_when_a_run_is_resumed(tmp_path: Path, kind: str) -> None:
    """Companions are not read for the state: whatever they hold is as good as nothing."""
    tiny.write_model(tmp_path / "hf")
    found = hostile_resumes.run(tmp_path, kind)
    assert not (tmp_path / "marker").exists()
    taken = [place for place, said in found.items() if said == "resumed"]
    assert [place for place in taken if not place.startswith(HARMLESS)] == []
    assert len(found) > (15 if kind == "deepspeed" else 100)
