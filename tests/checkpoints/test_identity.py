"""Copies of a model are the same model; other weights are another one."""

import shutil
from pathlib import Path

from alignctl.checkpoints.find import find
from alignctl.checkpoints.identity import identity
from alignctl.config.convert import ConvertOptions
from alignctl.stages import convert
from tests import tiny


def test_a_copy_is_the_same_and_other_weights_are_not(tmp_path: Path) -> None:
    """Whatever its folder is called, and whatever else lies in it."""
    model = tiny.write_model(tmp_path / "hf")
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / "README.md").write_text("notes")
    other = tiny.write_model(tmp_path / "other", seed=1)
    assert identity(find(copy)) == identity(find(model)) != identity(find(other))


def test_a_checkpoint_of_ours_is_known_by_its_checksums(tmp_path: Path) -> None:
    """Nothing is read: the file that is emptied here is compared when it is loaded."""
    model = tiny.write_model(tmp_path / "hf")
    options = {"load": model, "save": tmp_path / "mg", "verify": "none"}
    convert.run("hf2mg", ConvertOptions.model_validate(options))
    source = find(tmp_path / "mg")
    before = identity(source)
    assert source.manifest is not None
    for file in source.path.glob("*.distcp"):
        file.write_bytes(b"")
    assert identity(source) == before
