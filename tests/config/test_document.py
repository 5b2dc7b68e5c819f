from pathlib import Path

import pytest

from alignctl.config.presets.document import parse_value, read_yaml
from alignctl.errors import UserError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "preset.yaml"


def test_every_key_remembers_its_line(file: Path) -> None:
    file.write_text("a: 1\nb:\n  c:\n    - d: 2\n")
    document = read_yaml(file)
    assert document.tree == {"a": 1, "b": {"c": [{"d": 2}]}}
    lines = {path: origin.text.rpartition(":")[2] for path, origin in document.origins.items()}
    assert lines == {("a",): "1", ("b",): "2", ("b", "c"): "3", ("b", "c", 0, "d"): "4"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-3", -3),
        ("1e-5", 1e-5),
        ("2.5", 2.5),
        (".5", 0.5),
        ("6.0E-12", 6e-12),
        ("true", True),
        ("null", None),
        ("~", None),
        ("no", "no"),
        ("010", "010"),
        ("12:30:00", "12:30:00"),
        ("2024-01-01", "2024-01-01"),
        ("bf16", "bf16"),
        ("'1'", "1"),
        ("[1, 2]", [1, 2]),
        ("runs/a-1", "runs/a-1"),
    ],
)
def test_a_value_is_read_as_yaml_1_2_reads_it(text: str, value: object) -> None:
    found = parse_value(text, "override")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["", "{a: 1}", "[1", "!!python/name:os.system x", "*nowhere"])
def test_a_value_that_is_none_or_too_much_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="override 'x'"):
        parse_value(text, "override 'x'")


def test_a_repeated_key_names_both_lines(file: Path) -> None:
    file.write_text("a: 1\nsft:\n  lr: 1\n  lr: 2\na: 3\n")
    with pytest.raises(UserError) as caught:
        read_yaml(file)
    assert caught.value.message.splitlines() == [
        f"{file}:4: key 'sft.lr' was already set on line 3",
        f"{file}:5: key 'a' was already set on line 1",
    ]


def test_broken_yaml_names_the_line(file: Path) -> None:
    file.write_text("a: 1\nb: [1, 2\nc: 3\n")
    with pytest.raises(UserError, match=r"preset\.yaml:3: not valid YAML"):
        read_yaml(file)


@pytest.mark.parametrize("text", ["a: &x\n  b: *x\n", "a: &x 1\n", "a:\n- *x\n"])
def test_anchors_and_aliases_are_refused_where_they_stand(file: Path, text: str) -> None:
    file.write_text(f"# one\n{text}")
    with pytest.raises(UserError, match=r"preset\.yaml:[23]: .*anchors and aliases are not read"):
        read_yaml(file)


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_values_within_values_have_a_limit(file: Path, opening: str) -> None:
    file.write_text(f"a:\n {opening * 3000}")
    with pytest.raises(UserError, match=r"preset\.yaml:2: .*within each other"):
        read_yaml(file)


def test_a_character_that_cannot_be_seen_is_named_with_its_line(file: Path) -> None:
    file.write_text("a: 1\nb: x\x01y\n")
    with pytest.raises(UserError, match=r"preset\.yaml:2: not valid YAML: the character U\+0001"):
        read_yaml(file)
    with pytest.raises(UserError, match=r"override 'x':1: .*U\+0007"):
        parse_value("a\x07", "override 'x'")


@pytest.mark.parametrize(
    "value", ['!!bool "zz"', "!!int x", "!!float x", "!!timestamp x", "9" * 5000]
)
def test_a_value_that_is_not_what_its_tag_says_is_refused(file: Path, value: str) -> None:
    file.write_text(f"a: 1\nb: {value}\n")
    with pytest.raises(UserError, match=r"preset\.yaml:2: cannot read the value"):
        read_yaml(file)


def test_a_file_that_nobody_wrote_by_hand_is_refused(file: Path) -> None:
    file.write_text("a: 1\n" + "# more\n" * 30_000)
    with pytest.raises(UserError, match="larger than the 65,536 bytes"):
        read_yaml(file)


@pytest.mark.parametrize("text", ["? [1, 2]\n: 3\n", "a: {b: 1}\nc:\n  <<: {d: 1}\n"])
def test_a_key_that_is_no_word_is_refused(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(UserError, match="a key must be a word"):
        read_yaml(file)


@pytest.mark.parametrize("text", ["", "- 1\n", "word\n"])
def test_a_file_without_keys_is_refused(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(UserError, match="is not a mapping"):
        read_yaml(file)


def test_an_unreadable_file_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_yaml(tmp_path / "missing.yaml")
    with pytest.raises(UserError, match="a folder, where a file is expected"):
        read_yaml(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        read_yaml(tmp_path / "binary.yaml")


def test_a_tag_that_would_build_an_object_is_refused(file: Path) -> None:
    file.write_text("a: !!python/object/apply:os.getcwd []\nb: !!python/name:os.getcwd\n")
    with pytest.raises(UserError, match=r"preset\.yaml:[12]: "):
        read_yaml(file)
