from pathlib import Path

import pytest

from alignctl.checkpoints.companions import copy_companions, read_json
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
    ]
    source = tmp_path / "source"
    (source / "original").mkdir(parents=True)
    for name in [*kept, *left]:
        (source / name).write_bytes(name.encode())
    copy_companions(source, tmp_path / "new" / "target")
    found = {file.name: file.read_bytes() for file in (tmp_path / "new" / "target").iterdir()}
    assert found == {name: name.encode() for name in kept}


def test_another_tokenizer_replaces_all_files_of_the_models_own(tmp_path: Path) -> None:
    """tokenizer.model of the old one beside tokenizer.json of the new would contradict it."""
    model, tokenizer = tmp_path / "model", tmp_path / "tokenizer"
    for folder, names in (
        (model, ["config.json", "tokenizer.json", "tokenizer.model", "special_tokens_map.json"]),
        (tokenizer, ["config.json", "tokenizer.json", "tokenizer_config.json", "README.md"]),
    ):
        folder.mkdir()
        for name in names:
            (folder / name).write_text(folder.name)
    copy_companions(model, tmp_path / "target", tokenizer=tokenizer)
    found = {file.name: file.read_text() for file in (tmp_path / "target").iterdir()}
    assert found == {
        "config.json": "model",
        "tokenizer.json": "tokenizer",
        "tokenizer_config.json": "tokenizer",
    }


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
        copy_companions(source, tmp_path / "target")
