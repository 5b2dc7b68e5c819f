"""Tokenizer folders: what is read from them, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from alignctl.data.tokenizer import Tokenizer, check_fits, load_tokenizer
from alignctl.errors import UserError
from tests.data.conftest import MakeTokenizer

TEXTS = ["Sure thing", "  two  spaces\n", "\u00e9\u4f60\U0001f642", "a</s>b", "", "Hi! Hi"]


def test_ids_are_those_of_transformers(
    make_tokenizer: MakeTokenizer, llama_like: Tokenizer
) -> None:
    for tokenizer in (make_tokenizer(merges=[("S", "u"), ("Su", "r")]), llama_like):
        theirs = PreTrainedTokenizerFast.from_pretrained(tokenizer.folder)
        ours = [encoding.ids for encoding in tokenizer.encode_batch(TEXTS)]
        assert ours == theirs(TEXTS, add_special_tokens=False)["input_ids"]


def test_special_tokens_are_found(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 3)
    assert tokenizer.vocab_size == 4 + 256


@pytest.mark.parametrize(
    ("post_processor", "settings", "expected"),
    [
        (False, {}, False),
        (True, {}, True),
        (False, {"add_bos_token": True}, True),
        (True, {"add_bos_token": False}, False),
    ],
)
def test_bos_is_added_when_the_setting_or_else_the_post_processor_says_so(
    make_tokenizer: MakeTokenizer,
    post_processor: bool,
    settings: dict[str, Any],
    expected: bool,
) -> None:
    assert make_tokenizer(bos=post_processor, **settings).adds_bos is expected


def test_special_tokens_may_stand_in_the_map_or_the_model_config(
    make_tokenizer: MakeTokenizer,
) -> None:
    folder = make_tokenizer().folder
    (folder / "tokenizer_config.json").unlink()
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "</s>"}}')
    (folder / "config.json").write_text('{"bos_token_id": 1, "eos_token_id": [0, 2]}')
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, None)
    (folder / "special_tokens_map.json").unlink()
    assert load_tokenizer(folder).eos_id == 0


def test_chat_templates_may_have_files_of_their_own(make_tokenizer: MakeTokenizer) -> None:
    folder = make_tokenizer(chat_template="x").folder
    (folder / "chat_template.jinja").write_text("d")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/rag.jinja").write_text("r")
    assert load_tokenizer(folder).chat_templates == {"default": "d", "rag": "r"}


@pytest.mark.parametrize("value", [3, {"a": "b"}, ["x"], [{"name": "a"}], [{"template": "b"}]])
def test_a_chat_template_of_another_kind_is_refused(
    make_tokenizer: MakeTokenizer, value: object
) -> None:
    with pytest.raises(UserError, match=r"tokenizer_config\.json: chat_template is neither text"):
        make_tokenizer(chat_template=value)


def test_the_chat_template_may_be_a_file_or_one_of_several(make_tokenizer: MakeTokenizer) -> None:
    several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    tokenizer = make_tokenizer(chat_template=several)
    assert tokenizer.chat_templates["default"] == "d"
    (tokenizer.folder / "chat_template.jinja").write_text("j")
    assert load_tokenizer(tokenizer.folder).chat_templates == {"default": "j"}


def test_a_tokenizer_file_stands_for_its_folder(make_tokenizer: MakeTokenizer) -> None:
    folder = make_tokenizer().folder
    (folder / "tokenizer.model").touch()
    for name in ("tokenizer.model", "tokenizer.json"):
        assert load_tokenizer(folder / name).folder == folder


def test_without_tokenizer_json_the_hint_says_how_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(UserError, match=r"no tokenizer\.json") as caught:
        load_tokenizer(tmp_path / "tokenizer.model")
    assert "save_pretrained" in str(caught.value.hint)
    with pytest.raises(UserError, match="no such tokenizer folder"):
        load_tokenizer(tmp_path / "nowhere")


def test_tokens_that_only_the_config_lists_are_added(make_tokenizer: MakeTokenizer) -> None:
    listed = {"260": {"content": "<new>", "special": True}}
    tokenizer = make_tokenizer(added_tokens_decoder=listed)
    assert tokenizer.encode_batch(["a<new>"])[0].ids[-1] == 260
    assert tokenizer.vocab_size == 261
    with pytest.raises(UserError, match=r"'<new>' has id 300, but in .* it has 260"):
        make_tokenizer(added_tokens_decoder={"300": {"content": "<new>"}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eos_token": None}, "has no eos_token"),
        ({"eos_token": "<|end|>"}, r"eos_token is '<\|end\|>', which is no token"),
        ({"bos_token": None, "add_bos_token": True}, "add_bos_token is true"),
    ],
)
def test_impossible_special_tokens_are_refused(
    make_tokenizer: MakeTokenizer, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_tokenizer(**settings)


def test_damaged_files_are_named(make_tokenizer: MakeTokenizer) -> None:
    folder = make_tokenizer().folder
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: not valid JSON"):
        load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(UserError, match="a JSON object is expected"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    with pytest.raises(UserError, match=r"not a readable tokenizer\.json"):
        load_tokenizer(folder)


def test_ids_beyond_the_embedding_are_refused(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(merges=[("a", "b")])
    check_fits(tokenizer, 261)
    with pytest.raises(UserError, match=r"1 token ids exceed .* 260 rows \('ab' = 260\)"):
        check_fits(tokenizer, 260)


def test_the_fingerprint_follows_what_decides_the_tokens(make_tokenizer: MakeTokenizer) -> None:
    plain = make_tokenizer()
    assert plain.fingerprint == make_tokenizer().fingerprint
    others = [
        make_tokenizer(bos=True),
        make_tokenizer(chat_template="x"),
        make_tokenizer(merges=[("a", "b")]),
    ]
    assert len({t.fingerprint for t in [plain, *others]}) == 4


def test_a_pattern_that_takes_too_many_steps_is_told_by_its_file(
    make_tokenizer: MakeTokenizer,
) -> None:
    """The library panics then, which is no Exception."""
    file = make_tokenizer().folder / "tokenizer.json"
    content = json.loads(file.read_text())
    pattern = {"Regex": "(a+)+$"}
    content["pre_tokenizer"] = {
        "type": "Split",
        "pattern": pattern,
        "behavior": "Isolated",
        "invert": False,
    }
    file.write_text(json.dumps(content))
    tokenizer = load_tokenizer(file.parent)
    with pytest.raises(UserError, match=r"tokenizer\.json: fails over a text: .*retry-limit"):
        tokenizer.encode_batch(["a" * 60 + "!"])
