from pathlib import Path

import pytest

from alignctl.corpus.manifest import (
    CorpusManifest,
    FileRecord,
    TokenizerIdentity,
    check_tokenizer,
    file_record,
    is_made,
    name_beside,
    prefix_of,
    read_manifest,
    verify_files,
    vocabulary_hash,
    write_manifest,
)
from alignctl.errors import UserError


def identity(**changes: object) -> TokenizerIdentity:
    values = {"name": "bloom", "vocab_size": 3, "sha256": vocabulary_hash({"a": 0, "b": 1})}
    return TokenizerIdentity.model_validate({**values, **changes})


def dataset(prefix: Path) -> CorpusManifest:
    """Two files that look like a dataset to the manifest, which does not open them."""
    records: list[FileRecord] = []
    for suffix in (".bin", ".idx"):
        file = name_beside(prefix, suffix)
        file.write_bytes(b"content of" + suffix.encode())
        records.append(file_record(file, file.name))
    manifest = CorpusManifest(
        tokenizer=identity(),
        bos=None,
        eod=2,
        append_eod=True,
        documents=1,
        tokens=5,
        max_token_id=2,
        dtype="uint16",
        files=(records[0], records[1]),
        source=(FileRecord(name="a.jsonl", bytes=7, sha256="00"),),
    )
    write_manifest(prefix, manifest)
    return manifest


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    prefix = tmp_path / "wiki.v1"
    manifest = dataset(prefix)
    assert read_manifest(prefix) == manifest
    verify_files(prefix, manifest)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "wiki.v1.bin",
        "wiki.v1.idx",
        "wiki.v1.json",
    ]


def test_any_of_the_files_stands_for_the_prefix() -> None:
    assert prefix_of(Path("data/wiki.v1.bin")) == Path("data/wiki.v1")
    assert prefix_of(Path("data/wiki.v1")) == Path("data/wiki.v1")


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    dataset(tmp_path / "wiki")
    (tmp_path / "wiki.bin").write_bytes(b"short")
    with pytest.raises(UserError, match=r"wiki\.bin: 5 bytes, where wiki\.json says 14"):
        read_manifest(tmp_path / "wiki")


def test_a_changed_file_of_the_same_size_fails_its_checksum(tmp_path: Path) -> None:
    manifest = dataset(tmp_path / "wiki")
    (tmp_path / "wiki.idx").write_bytes(b"Content of.idx")
    assert read_manifest(tmp_path / "wiki") == manifest
    with pytest.raises(UserError, match=r"wiki\.idx: the content is not what wiki\.json says"):
        verify_files(tmp_path / "wiki", manifest)


def test_a_missing_dataset_names_those_that_are_there(tmp_path: Path) -> None:
    dataset(tmp_path / "wiki")
    with pytest.raises(UserError, match=r"no indexed dataset of this prefix.*in that folder: wiki"):
        read_manifest(tmp_path / "wikki")


def test_a_dataset_of_another_program_lacks_its_tokenizer(tmp_path: Path) -> None:
    dataset(tmp_path / "wiki")
    (tmp_path / "wiki.json").unlink()
    with pytest.raises(UserError, match=r"\.bin and \.idx without wiki\.json"):
        read_manifest(tmp_path / "wiki")


def test_a_json_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wiki.json").write_text('{"text": "no manifest"}')
    with pytest.raises(UserError, match=r"wiki\.json: not the manifest of an indexed dataset"):
        read_manifest(tmp_path / "wiki")


def test_ids_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    manifest = dataset(tmp_path / "wiki")
    check_tokenizer(tmp_path / "wiki", manifest, identity(name="renamed"))
    other = identity(name="llama", vocab_size=9, sha256=vocabulary_hash({"a": 1, "b": 0}))
    with pytest.raises(UserError, match=r"tokenised with bloom \(3 tokens\).*llama \(9 tokens\)"):
        check_tokenizer(tmp_path / "wiki", manifest, other)


def test_the_hash_of_a_vocabulary_does_not_depend_on_its_order() -> None:
    one = vocabulary_hash({"a": 0, "b": 1})
    assert one == vocabulary_hash({"b": 1, "a": 0})
    assert one != vocabulary_hash({"a": 1, "b": 0})


def test_a_folder_of_somebody_else_is_not_taken_for_what_was_made(tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    assert not is_made(tmp_path, {"format": 1})
    file.write_text('{"name": "their own"}')
    assert not is_made(tmp_path, {"format": 1})
    for content in ("[]", '{"format": 1}', '{"format": 1, "files": [{}]}', "{"):
        file.write_text(content)
        with pytest.raises(UserError, match=r"manifest.json: "):
            is_made(tmp_path, {"format": 1})
