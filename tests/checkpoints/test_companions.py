from pathlib import Path

import pytest

from alignctl.checkpoints.companions import copy_companions, read_json
from alignctl.errors import UserError


def test_everything_but_weights_hidden_files_and_folders_travels(tmp_path: Path) -> None:
    kept = ["config.json", "tokenizer.model", "LICENSE.txt", "chat_template.jinja"]
    left = [
        "model.safetensors",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "consolidated.00.pth",
        "weights.GGUF",
        ".gitattributes",
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
        ("[1]", "a JSON object was expected, found list"),
        ("\udcff", "not valid JSON"),
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
