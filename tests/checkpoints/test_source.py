from pathlib import Path

import pytest
import torch

from alignctl.checkpoints.find import find
from alignctl.checkpoints.formats import mcore
from alignctl.checkpoints.manifest import HF_FOLDER, Manifest, Recorder, record_all
from alignctl.checkpoints.tensors.dtypes import bits_of
from alignctl.errors import UserError
from alignctl.models.families import weight_map
from alignctl.models.weight_map import full_shape
from alignctl.run_folder import LATEST
from tests.checkpoints.folders import architecture, lazy, write_config, write_hf

MODEL = architecture("llama2")


def write_checkpoint(folder: Path, *, iteration: int = 0) -> Path:
    """A Megatron-Core checkpoint of random weights in bfloat16."""
    folder.mkdir(parents=True)
    shapes = {name: full_shape(row, MODEL) for name, row in weight_map(MODEL).items()}
    tensors = {name: torch.randn(shape).bfloat16() for name, shape in shapes.items()}
    with Recorder() as recorder:
        mcore.write(
            folder, lazy(tensors), map(bits_of, tensors.values()), num_layers=2, recorder=recorder
        )
        write_config(folder / HF_FOLDER, MODEL)
        Manifest(
            iteration=iteration,
            model=MODEL,
            dtype="bfloat16",
            padded_vocab_size=11,
            hf_prefix="model.",
        ).write(folder, record_all(folder, recorder.records(folder)))
    return folder


def test_a_hugging_face_folder_is_found_by_its_config(tmp_path: Path) -> None:
    write_hf(tmp_path, MODEL)
    source = find(tmp_path, vocab_divisor=2)
    assert (source.kind, source.path, source.auxiliary) == ("hf", tmp_path, tmp_path)
    assert source.model == MODEL.model_copy(update={"vocab_divisor": 2})
    assert (source.manifest, source.role) == (None, "policy")
    about = "Hugging Face llama2, 2 layers, float32, from model.safetensors"
    assert source.description == f"{tmp_path}: {about}"


def test_one_checkpoint_is_found_by_its_manifest(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "iter_0000100", iteration=100)
    source = find(checkpoint)
    assert (source.kind, source.path) == ("mcore", checkpoint)
    assert source.auxiliary == checkpoint / HF_FOLDER
    assert source.description.endswith("llama2, 2 layers, bfloat16, iteration 100")


@pytest.mark.parametrize(
    ("latest", "name"), [("release", "release"), ("20", "iter_0000020"), ("20\n", "iter_0000020")]
)
def test_a_folder_of_checkpoints_means_its_latest(latest: str, name: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "iter_0000010")
    expected = write_checkpoint(tmp_path / name)
    (tmp_path / LATEST).write_text(latest)
    assert find(tmp_path).path == expected


def test_a_run_folder_means_its_latest_checkpoint(tmp_path: Path) -> None:
    """It has a config.json as well, which is the run's and not the model's."""
    (tmp_path / "config.json").write_text("{}")
    expected = write_checkpoint(tmp_path / "checkpoints" / "iter_0000003", iteration=3)
    (tmp_path / "checkpoints" / LATEST).write_text("3")
    assert find(tmp_path).path == expected


def test_a_run_without_a_checkpoint_is_told_apart_from_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="this run has no checkpoint yet"):
        find(tmp_path)


def test_a_path_that_is_missing_or_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing: no such folder"):
        find(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: a folder was expected"):
        find(tmp_path / "file")


def test_a_folder_that_is_no_model_points_to_one_in_it(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_config(tmp_path / "llama", MODEL)
    with pytest.raises(UserError, match="not a model: neither config") as error:
        find(tmp_path)
    assert error.value.hint == f"did you mean {tmp_path / 'llama'}?"
    with pytest.raises(UserError) as error:
        find(tmp_path / "empty")
    assert "did you mean" not in str(error.value.hint)


def test_a_tracker_that_points_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / LATEST).write_text("latest")
    with pytest.raises(UserError, match="'latest' is neither an iteration nor `release`"):
        find(tmp_path)
    (tmp_path / LATEST).write_text("5")
    with pytest.raises(UserError, match="names iter_0000005, which is not there"):
        find(tmp_path)


def test_a_folder_of_two_models_is_refused_and_both_are_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "release")
    write_hf(tmp_path, MODEL)
    (tmp_path / LATEST).write_text("release")
    with pytest.raises(UserError) as error:
        find(tmp_path)
    assert "two models are in it: one of Hugging Face, and release" in error.value.message
    assert str(error.value.hint).startswith(f"for the second one give {tmp_path / 'release'}")
    (tmp_path / LATEST).write_text("7")
    with pytest.raises(UserError) as error:
        find(tmp_path)
    assert "names iter_0000007, which is not there" in error.value.message
    assert str(error.value.hint) == (
        f"a Hugging Face model is there: if that one is meant, remove {LATEST}"
    )


def test_a_model_with_a_folder_named_checkpoints_is_no_run(tmp_path: Path) -> None:
    write_hf(tmp_path, MODEL)
    (tmp_path / "checkpoints").mkdir()
    assert find(tmp_path).kind == "hf"


@pytest.mark.parametrize("has_reference", [True, False])
def test_the_cache_of_the_hub_points_to_the_version_that_is_meant(
    has_reference: bool, tmp_path: Path
) -> None:
    cache = tmp_path / "models--owner--name"
    for version in ("a1", "b2"):
        write_hf(cache / "snapshots" / version, MODEL)
    (cache / "refs").mkdir()
    if has_reference:
        (cache / "refs/main").write_text("a1")
    with pytest.raises(UserError) as error:
        find(cache)
    assert (
        error.value.message == f"{cache}: the hub's cache of a model, which keeps 2 of its versions"
    )
    meant = "a1" if has_reference else "b2"
    assert error.value.hint == f"give the folder of a version: --load {cache}/snapshots/{meant}"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_link_to_what_is_gone_is_called_that(name: str, tmp_path: Path) -> None:
    """A hub cache that was copied without its blobs, and a link to a folder that was moved."""
    folder = write_hf(tmp_path / "hf", MODEL)
    (folder / "pytorch_model.bin").write_bytes(b"the next that would be read")
    (folder / name).unlink()
    (folder / name).symlink_to("../../blobs/0123")
    with pytest.raises(UserError, match=rf"{name}: a link to \.\./\.\./blobs/0123, which is not"):
        find(folder)
    (tmp_path / "link").symlink_to("elsewhere")
    with pytest.raises(UserError, match="link: a link to elsewhere, which is not there"):
        find(tmp_path / "link")


def test_adapters_of_peft_are_called_that(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="adapters of PEFT's, without the model"):
        find(tmp_path)
    write_hf(tmp_path, MODEL)
    with pytest.raises(UserError, match=r"adapter_config\.json lies beside the weights"):
        find(tmp_path)


@pytest.mark.parametrize("has_common", [True, False])
def test_a_distributed_checkpoint_without_arguments_asks_for_a_preset_and_takes_its_word(
    has_common: bool, tmp_path: Path
) -> None:
    """As NeMo writes it, whose names have `module.` before them."""
    full = {
        f"module.{name}": torch.zeros(full_shape(row, MODEL))
        for name, row in weight_map(MODEL).items()
    }
    with Recorder() as recorder:
        weights = map(bits_of, full.values())
        mcore.write(tmp_path, lazy(full), weights, num_layers=2, recorder=recorder)
    if not has_common:
        (tmp_path / mcore.COMMON).unlink()
    with pytest.raises(UserError) as error:
        find(tmp_path)
    if has_common:
        assert error.value.hint == "tell it with --preset FILE, the preset of this model"
    found = find(tmp_path, expected=MODEL)
    assert (found.model, found.kind, found.manifest) == (MODEL, "mcore", None)
