"""Every file of a folder that we wrote is compared with its checksum when it is read again."""

import json
import shutil
from pathlib import Path

import pytest

from alignctl.checkpoints import find, manifest
from alignctl.errors import UserError
from tests.stages.conftest import Alignctl


@pytest.fixture(scope="module")
def written(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mg`, a Megatron checkpoint of the tiny Llama, and `hf`, what was written of that."""
    from alignctl.checkpoints.conversion import Target, convert

    folder = tmp_path_factory.mktemp("written")
    model = folder / "model"
    shutil.copytree(workspace / "hf", model)
    (model / "additional_chat_templates").mkdir()
    named = "additional_chat_templates/rag.jinja"
    for name in ("README.md", "chat_template.jinja", named, "modeling_own.py"):
        (model / name).write_text("one\n")
    for name, read, target in (("mg", "model", "mcore"), ("hf", "mg", "hf")):
        (folder / name).mkdir()
        convert(find.find(folder / read), folder / name, Target(target))  # type: ignore[arg-type]
    return folder


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    shutil.copytree(written, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("kind", ["mg", "hf"])
def test_every_file_has_a_checksum(written: Path, kind: str) -> None:
    folder = written / kind
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert files == {manifest.NAME, *manifest.read(folder).files}


def flip(file: Path) -> None:
    """Another character in the place of the last but one: the size stays."""
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(("kind", "beside"), [("mg", "hf/"), ("hf", "")])
def test_a_tokenizer_that_changed_is_refused_by_name(copy: Path, kind: str, beside: str) -> None:
    file = copy / kind / f"{beside}tokenizer.json"
    flip(file)
    with pytest.raises(UserError) as caught:
        find.find(copy / kind)
    assert caught.value.message == f"{file}: its checksum differs from the one in alignctl.json"
    if kind == "hf":
        assert "if the change was meant, remove alignctl.json" in str(caught.value.hint)
        (copy / "hf" / manifest.NAME).unlink()
        assert find.find(copy / "hf").manifest is None


@pytest.mark.parametrize(("kind", "beside"), [("mg", "hf/"), ("hf", "")])
@pytest.mark.parametrize(
    "name",
    [
        "tokenizer_config.json",
        "generation_config.json",
        "chat_template.jinja",
        "additional_chat_templates/rag.jinja",
    ],
)
def test_what_people_edit_is_read_and_named(copy: Path, kind: str, beside: str, name: str) -> None:
    told = find.find(copy / kind).description
    assert "changed since" not in told
    flip(copy / kind / f"{beside}{name}")
    (copy / kind / f"{beside}README.md").unlink()
    found = find.find(copy / kind)
    names = sorted({f"{beside}README.md", f"{beside}{name}"})
    assert found.description == f"{told}; changed since they were written: {', '.join(names)}"
    assert found.manifest is not None
    manifest.verify_checksums(copy / kind, found.manifest)


def test_a_config_may_be_edited_as_long_as_the_model_is_the_same(copy: Path) -> None:
    file = copy / "hf" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token_id": 0}))
    assert find.find(copy / "hf").description.endswith("were written: config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rms_norm_eps": 1e-3}))
    with pytest.raises(UserError, match="describe different models"):
        find.find(copy / "hf")
    file.unlink()
    with pytest.raises(UserError, match=r"config.json is missing|not a model"):
        find.find(copy / "hf")


def test_a_changed_weight_is_refused(alignctl: Alignctl, copy: Path) -> None:
    file = copy / "hf" / "model.safetensors"
    flip(file)
    outcome = alignctl("convert-hf2mg", "--load", copy / "hf", "--save", copy / "new")
    assert outcome.code == 2
    assert f"error: {file}: its checksum differs from the one in alignctl.json" in outcome.err
    assert not (copy / "new").exists()


@pytest.mark.parametrize(
    "link", ["hf/tokenizer.json", "hf/additional_chat_templates/rag.jinja", "hf"]
)
def test_a_link_out_of_a_checkpoint_is_not_followed(copy: Path, link: str) -> None:
    path = copy / "mg" / link
    outside = copy / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(UserError) as caught:
        find.find(copy / "mg")
    said = f"{path}: a link out of the checkpoint, to {outside}: it is not followed"
    assert caught.value.message == said


def test_a_link_to_a_neighbour_is_followed(copy: Path) -> None:
    file = copy / "mg/hf/README.md"
    file.rename(copy / "mg/hf/README")
    file.symlink_to("README")
    assert find.find(copy / "mg").auxiliary == copy / "mg/hf"


def test_python_files_are_left_where_they_are(
    alignctl: Alignctl, written: Path, tmp_path: Path
) -> None:
    flags = ("--load", written / "model", "--save", tmp_path / "new", "--verify", "none")
    outcome = alignctl("convert-hf2mg", *flags)
    assert outcome.code == 0, outcome.text
    assert "note: not taken along, and never run: modeling_own.py\n" in outcome.err
    assert [*tmp_path.rglob("*.py")] == []


@pytest.mark.parametrize("name", ["alignctl.json", "hf/tokenizer_config.json"])
def test_a_link_to_itself_and_a_file_of_terabytes_are_named(copy: Path, name: str) -> None:
    file = copy / "mg" / name
    file.unlink()
    with file.open("wb") as stream:
        stream.truncate(1 << 40)
    if name == "alignctl.json":
        with pytest.raises(UserError, match=r"alignctl.json: larger than"):
            find.find(copy / "mg")
    else:
        assert "changed since" in find.find(copy / "mg").description
    file.unlink()
    file.symlink_to(file)
    with pytest.raises(UserError):
        find.find(copy / "mg")


def test_a_tracker_of_terabytes_is_read_at_its_beginning(copy: Path) -> None:
    file = copy / "mg/latest_checkpointed_iteration.txt"
    with file.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(UserError, match="neither an iteration nor `release`"):
        find.find(copy / "mg")
