import hashlib
import io
import json
from pathlib import Path

import pytest

from alignctl.checkpoints import manifest
from alignctl.checkpoints.manifest import FileRecord, Manifest, Recorder
from alignctl.errors import UserError
from tests.checkpoints.folders import architecture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of three files and its manifest."""
    checkpoint = tmp_path / "iter_0000007"
    (checkpoint / "hf").mkdir(parents=True)
    (checkpoint / "__0_0.distcp").write_bytes(b"weights" * 100)
    (checkpoint / ".metadata").write_bytes(b"index")
    (checkpoint / "hf" / "config.json").write_text("{}")
    Manifest(
        iteration=7,
        model=architecture("llama2"),
        dtype="float32",
        padded_vocab_size=128,
        hf_prefix="model.",
    ).write(checkpoint, manifest.record_all(checkpoint, {}))
    return checkpoint


def test_every_file_is_recorded_hidden_ones_and_those_in_folders_too(folder: Path) -> None:
    found = manifest.read(folder)
    assert sorted(found.files) == [".metadata", "__0_0.distcp", "hf/config.json"]
    assert found.files["__0_0.distcp"].num_bytes == 700
    assert (found.iteration, found.model) == (7, architecture("llama2"))
    manifest.verify_checksums(folder, found)


def test_a_folder_without_a_manifest_is_not_finished(folder: Path) -> None:
    (folder / manifest.NAME).unlink()
    with pytest.raises(UserError, match="not an alignctl checkpoint"):
        manifest.read(folder)


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "hf/config.json"])
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is missing, though alignctl.json lists it"):
        manifest.read(folder)


def test_a_truncated_file_is_named_with_both_sizes(folder: Path) -> None:
    (folder / "__0_0.distcp").write_bytes(b"weights")
    with pytest.raises(UserError, match=r"__0_0.distcp: 7 bytes, but .* recorded 700") as error:
        manifest.read(folder)
    assert "truncated" in str(error.value.hint)


def test_a_changed_byte_shows_in_the_checksum(folder: Path) -> None:
    found = manifest.read(folder)
    (folder / "__0_0.distcp").write_bytes(b"weights" * 99 + b"weighty")
    with pytest.raises(UserError, match=r"__0_0.distcp: its checksum differs"):
        manifest.verify_checksums(folder, found)


@pytest.mark.parametrize("place", ["../secret", "/etc/hostname", "hf/../../secret"])
def test_a_manifest_cannot_name_a_file_outside_the_checkpoint(place: str, folder: Path) -> None:
    content = json.loads((folder / manifest.NAME).read_text())
    content["files"] = {place: {"num_bytes": 1, "sha256": "0"}}
    (folder / manifest.NAME).write_text(json.dumps(content))
    with pytest.raises(UserError, match="lies outside the checkpoint"):
        manifest.read(folder)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": 2}, "version: Input should be 1"),
        ({"iteration": "seven"}, "iteration"),
        ({"surprise": 1}, "surprise"),
        ({"model": {}}, "model"),
    ],
)
def test_a_manifest_of_another_version_says_which_entry(
    change: dict[str, object], complaint: str, folder: Path
) -> None:
    content = json.loads((folder / manifest.NAME).read_text())
    (folder / manifest.NAME).write_text(json.dumps(content | change))
    with pytest.raises(UserError, match=r"alignctl.json: ") as error:
        manifest.read(folder)
    assert complaint in error.value.message


def test_a_manifest_that_was_edited_is_refused(folder: Path) -> None:
    """Another base of the rotary positions would load, and give another model."""
    text = (folder / manifest.NAME).read_text()
    (folder / manifest.NAME).write_text(
        text.replace('"rotary_base": 10000.0', '"rotary_base": 20000.0')
    )
    with pytest.raises(UserError, match="its checksum differs from its content"):
        manifest.read(folder)


def test_a_manifest_that_is_no_json_is_refused(folder: Path) -> None:
    (folder / manifest.NAME).write_text("{")
    with pytest.raises(UserError, match=r"alignctl\.json: "):
        manifest.read(folder)


def test_a_growing_file_is_recorded_as_hashlib_would_when_it_is_done(tmp_path: Path) -> None:
    file = tmp_path / "sub" / "growing"
    file.parent.mkdir()
    with Recorder() as recorder:
        with recorder.open(file) as stream:
            for number in range(100):
                stream.write(bytes([number]) * 1000)
        found = recorder.records(tmp_path)
    assert found == {"sub/growing": manifest.record(file)}
    assert found["sub/growing"].num_bytes == 100_000


def test_what_was_written_cannot_be_written_again(tmp_path: Path) -> None:
    """Its checksum would then be that of other bytes."""
    with Recorder() as recorder, recorder.open(tmp_path / "file") as stream:
        stream.write(b"weights")
        with pytest.raises(io.UnsupportedOperation):
            stream.seek(0)


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """At once where it cannot be opened; in the end where it cannot be synced any more."""
    with Recorder() as recorder:
        with pytest.raises(FileNotFoundError), recorder.open(tmp_path / "nowhere" / "file"):
            pass
        with recorder.open(tmp_path / "file"):
            (tmp_path / "file").unlink()
        with pytest.raises(FileNotFoundError):
            recorder.records(tmp_path)


def with_sha256(folder: Path, content: bytes) -> str:
    """Gives a manifest of one file the kind of checksum that manifests had first; its digest."""
    found = manifest.read(folder)
    sha256 = hashlib.sha256(content).hexdigest()
    record = FileRecord(num_bytes=len(content), sha256=sha256)
    found.write(folder, {"__0_0.distcp": record})
    return sha256


def test_the_checksums_of_older_manifests_are_compared_too(folder: Path) -> None:
    """The entry of a file is what it was then, so the digest of the whole manifest is too."""
    sha256 = with_sha256(folder, b"weights" * 100)
    stored = json.loads((folder / manifest.NAME).read_text())
    assert stored["files"] == {"__0_0.distcp": {"num_bytes": 700, "sha256": sha256}}
    found = manifest.read(folder)
    manifest.verify_checksums(folder, found)
    (folder / "__0_0.distcp").write_bytes(b"weights" * 99 + b"weighty")
    with pytest.raises(UserError, match=r"__0_0.distcp: its checksum differs"):
        manifest.verify_checksums(folder, found)


def test_the_checksum_of_a_file_is_the_published_one(tmp_path: Path) -> None:
    """XXH3 of 128 bits of nothing, from the test vectors of its author."""
    (tmp_path / "empty").write_bytes(b"")
    found = manifest.record(tmp_path / "empty")
    assert found.model_dump() == {"num_bytes": 0, "xxh3": "99aa06d3014798d86001c324468d497f"}


@pytest.mark.parametrize("checksums", [{}, {"xxh3": "0", "sha256": "0"}])
def test_a_file_has_one_checksum(checksums: dict[str, str], folder: Path) -> None:
    content = json.loads((folder / manifest.NAME).read_text())
    content["files"] = {"__0_0.distcp": {"num_bytes": 700, **checksums}}
    (folder / manifest.NAME).write_text(json.dumps(content))
    with pytest.raises(UserError, match="a file has one checksum, xxh3 or sha256"):
        manifest.read(folder)


def test_checksums_of_two_kinds_leave_it_to_the_sizes() -> None:
    old, new = FileRecord(num_bytes=7, sha256="a"), FileRecord(num_bytes=7, xxh3="b")
    assert new.agrees_with(old)
    assert old.agrees_with(new)
    assert not FileRecord(num_bytes=8, xxh3="b").agrees_with(old)
    assert not FileRecord(num_bytes=7, xxh3="c").agrees_with(new)


def test_a_manifest_from_before_there_was_an_offset_is_still_whole(folder: Path) -> None:
    content = json.loads((folder / manifest.NAME).read_text())
    del content["score_offset"]
    (folder / manifest.NAME).write_text(json.dumps(content))
    assert manifest.read(folder).score_offset is None


def test_an_offset_is_kept_to_the_last_bit_and_counts_in_the_checksum(folder: Path) -> None:
    found = manifest.read(folder).model_copy(update={"score_offset": 0.1 + 0.2})
    found.write(folder, found.files)
    assert manifest.read(folder).score_offset == 0.1 + 0.2
    text = (folder / manifest.NAME).read_text()
    (folder / manifest.NAME).write_text(text.replace("0.30000000000000004", "0.3"))
    with pytest.raises(UserError, match="its checksum differs from its content"):
        manifest.read(folder)


def test_a_file_of_another_size_is_not_read(folder: Path) -> None:
    """A terabyte of zeros in the place of an edited config would be hashed for hours."""
    with (folder / "hf/config.json").open("wb") as file:
        file.truncate(1 << 40)
    assert manifest.find_changed_texts(folder, manifest.read(folder)) == ["hf/config.json"]
