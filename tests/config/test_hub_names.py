from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignctl.config.hub import HubName, names_in, parse, read_name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Anthropic/hh-rlhf", HubName("Anthropic/hh-rlhf")),
        ("openai/gsm8k:main", HubName("openai/gsm8k", "main")),
        ("openai/gsm8k@v1.0", HubName("openai/gsm8k", revision="v1.0")),
        ("a/b:c:train_sft@refs/pr/1", HubName("a/b", "c", "train_sft", "refs/pr/1")),
        ("a/b::test", HubName("a/b", None, "test")),
        ("gsm8k", None),
        ("a/b/c", None),
        ("data/train.jsonl", None),
        ("data/train.jsonl.zst", None),
        ("../b", None),
        ("a/..", None),
        ("a/b:", HubName("a/b")),
        ("a/b@", None),
        ("a/b c", None),
        ("/a/b", None),
        ("https://huggingface.co/a/b", None),
    ],
)
def test_names_have_two_parts_and_perhaps_more_behind_colons(
    text: str, name: HubName | None
) -> None:
    assert parse(text) == name


WORDS = st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True)


@given(WORDS, WORDS, st.none() | WORDS, st.none() | WORDS, st.none() | WORDS)
def test_a_name_is_what_it_is_written_as(
    org: str, repo: str, config: str | None, split: str | None, revision: str | None
) -> None:
    name = HubName(f"{org}/{repo}", config, split, revision)
    assert parse(str(name)) == name


def test_what_is_there_or_would_lie_in_a_folder_that_is_there_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_name(Path("data/sft")) == HubName("data/sft")
    (tmp_path / "data").mkdir()
    assert read_name(Path("data/sft")) is None
    (tmp_path / "link").symlink_to("nowhere")
    assert names_in([Path("link/sft"), tmp_path / "b", Path(), Path("a/b")]) == {
        Path("a/b"): HubName("a/b")
    }
