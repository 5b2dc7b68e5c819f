import json
import os
from pathlib import Path

import pytest

from alignctl.checkpoints.auxiliary_files import copy_auxiliary_files, read_json
from alignctl.errors import UserError


def test_what_belongs_to_a_hugging_face_model_travels_and_nothing_else(tmp_path: Path) -> None:
    """What trackers, trainers and other formats leave beside a model means nothing elsewhere."""
    kept = [
        "config.json",
        "generation_config.json",
        "tokenizer.model",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "merges.txt",
        "qwen.tiktoken",
        "chat_template.jinja",
        "additional_chat_templates/rag.jinja",
        "LICENSE.txt",
        "README.md",
    ]
    left = [
        "model.safetensors",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "consolidated.00.pth",
        "weights.GGUF",
        ".gitattributes",
        "latest_checkpointed_iteration.txt",
        "latest",
        "zero_to_fp32.py",
        "tokenization_own.py",
        "modeling_own.py",
        "trainer_state.json",
        "training_args.bin",
        "metadata.json",
        "adapter_config.json",
        "alignctl.json",
        "pytorch_model.bin.bak",
        "additional_chat_templates/notes.md",
        "additional_chat_templates/.hidden.swp",
        "original/params.json",
    ]
    source = tmp_path / "source"
    for folder in ("original", "additional_chat_templates/deeper.jinja"):
        (source / folder).mkdir(parents=True)
    for name in [*kept, *left]:
        (source / name).write_bytes(content_of(name))
    copy_auxiliary_files(source, tmp_path / "new" / "target")
    target = tmp_path / "new" / "target"
    files = [file for file in target.rglob("*") if file.is_file()]
    found = {str(file.relative_to(target)): file.read_bytes() for file in files}
    assert found == {name: content_of(name) for name in kept}


def content_of(name: str) -> bytes:
    return json.dumps({"name": name}).encode()


@pytest.mark.parametrize("name", ["generation_config.json", "special_tokens_map.json"])
def test_settings_that_cannot_be_read_are_not_passed_on(tmp_path: Path, name: str) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / name).write_text('{"eos_token_id": [2')
    with pytest.raises(UserError, match=f"{name}: not valid JSON"):
        copy_auxiliary_files(tmp_path / "source", tmp_path / "target")


@pytest.mark.parametrize(
    ("name", "key", "value", "expected"),
    [
        ("config.json", "initializer_range", [0.02], "a number"),
        ("config.json", "eos_token_id", [2, "3"], "a whole number, or a list of them"),
        ("generation_config.json", "eos_token_id", [], "a whole number, or a list of them"),
        ("generation_config.json", "max_length", {"a": 1}, "a number"),
        ("generation_config.json", "do_sample", "yes", "true or false"),
        ("tokenizer_config.json", "model_max_length", "long", "a number"),
        ("tokenizer_config.json", "padding_side", 1, "text"),
    ],
)
def test_a_known_key_of_another_kind_is_named(
    tmp_path: Path, name: str, key: str, value: object, expected: str
) -> None:
    file = tmp_path / "source" / name
    file.parent.mkdir()
    file.write_text(json.dumps({key: value}))
    with pytest.raises(UserError) as error:
        copy_auxiliary_files(file.parent, tmp_path / "target")
    assert error.value.message == f"{file}: {key} is {value!r}, where {expected} is expected"


def test_unknown_keys_nulls_and_vocabularies_pass(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    told: dict[str, object] = {
        "use_cache": None,
        "new_key": [{}],
        "model_max_length": 1e30,
        "bos_token_id": [1, 2],
    }
    (tmp_path / "source" / "config.json").write_text(json.dumps(told))
    (tmp_path / "source" / "vocab.json").write_text(json.dumps({"dtype": 0, "legacy": 1}))
    copy_auxiliary_files(tmp_path / "source", tmp_path / "target")
    assert {file.name for file in (tmp_path / "target").iterdir()} == {"config.json", "vocab.json"}


def test_a_file_of_terabytes_is_not_copied(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with (tmp_path / "source" / "tokenizer.model").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match=r"tokenizer.model: 1,099,511,627,776 bytes"):
        copy_auxiliary_files(tmp_path / "source", tmp_path / "target")


def test_another_tokenizer_replaces_all_files_of_the_models_own(tmp_path: Path) -> None:
    """tokenizer.model of the old one beside tokenizer.json of the new would contradict it."""
    model, tokenizer = tmp_path / "model", tmp_path / "tokenizer"
    templates = "additional_chat_templates"
    old = ["tokenizer.json", "tokenizer.model", "special_tokens_map.json", f"{templates}/a.jinja"]
    new = ["tokenizer.json", "tokenizer_config.json", f"{templates}/b.jinja"]
    for folder, names in (
        (model, ["config.json", *old]),
        (tokenizer, ["config.json", *new, "README.md"]),
    ):
        (folder / templates).mkdir(parents=True)
        for name in names:
            (folder / name).write_text(json.dumps({"of": folder.name}))
    target = tmp_path / "target"
    copy_auxiliary_files(model, target, tokenizer=tokenizer)
    files = [file for file in target.rglob("*") if file.is_file()]
    found = {str(file.relative_to(target)): json.loads(file.read_text())["of"] for file in files}
    assert found == {"config.json": "model", **dict.fromkeys(new, "tokenizer")}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "not valid JSON"),
        ("[1]", "a JSON object is expected, found list"),
        ("\udcff", "not UTF-8 text"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_file_that_holds_no_json_object_is_named(
    content: str | None, complaint: str, tmp_path: Path
) -> None:
    file = tmp_path / "config.json"
    if content is not None:
        file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as error:
        read_json(file)
    assert error.value.message.startswith(f"{file}: ")
    assert complaint in error.value.message


def test_a_link_to_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    """Half of a hub cache, without the blobs that its links mean."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "tokenizer.json").symlink_to("../../blobs/0123")
    with pytest.raises(UserError, match=r"a link to \.\./\.\./blobs/0123, which is not there"):
        copy_auxiliary_files(source, tmp_path / "target")


def test_named_templates_of_the_hubs_cache_travel(tmp_path: Path) -> None:
    """Whose files are links to where all versions keep them."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/0123").write_text("{{ messages }}")
    source = tmp_path / "snapshots/abc"
    (source / "additional_chat_templates").mkdir(parents=True)
    (source / "additional_chat_templates/rag.jinja").symlink_to("../../../blobs/0123")
    copy_auxiliary_files(source, tmp_path / "target")
    copy = tmp_path / "target/additional_chat_templates/rag.jinja"
    assert not copy.is_symlink()
    assert copy.read_text() == "{{ messages }}"


@pytest.mark.parametrize(
    "place", ["additional_chat_templates/rag.jinja", "additional_chat_templates"]
)
def test_named_templates_are_not_taken_from_elsewhere(place: str, tmp_path: Path) -> None:
    secret = tmp_path / "elsewhere" / "rag.jinja"
    secret.parent.mkdir()
    secret.write_text("secret")
    source = tmp_path / "source"
    (source / place).parent.mkdir(parents=True)
    (source / place).symlink_to(secret if place.endswith("jinja") else secret.parent)
    with pytest.raises(
        UserError, match=r"rag\.jinja: leads out of the model's folder, to .*elsewhere"
    ):
        copy_auxiliary_files(source, tmp_path / "target")


@pytest.mark.parametrize("name", ["tokenizer.json", "additional_chat_templates/rag.jinja"])
def test_what_is_no_regular_file_is_named(name: str, tmp_path: Path) -> None:
    """Whoever opened a pipe would wait for ever."""
    source = tmp_path / "source"
    (source / name).parent.mkdir(parents=True)
    os.mkfifo(source / name)
    with pytest.raises(UserError, match="not a regular file"):
        copy_auxiliary_files(source, tmp_path / "target")
