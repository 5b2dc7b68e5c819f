"""The preview: text again, cut where the mask changes."""

import numpy as np

from alignctl.data.batch import Document
from alignctl.data.preview import pieces
from alignctl.data.rows.schemas import Rendered
from alignctl.data.text.masks import encode
from alignctl.data.text.templates import render_hh
from alignctl.data.tokenizer import Tokenizer
from tests.data.conftest import MakeTokenizer
from tests.data.test_templates import chat


def shown(tokenizer: Tokenizer, rendered: Rendered) -> list[tuple[str, bool]]:
    (encoded,) = encode([rendered], tokenizer)
    return pieces(Document(encoded.tokens, encoded.supervised, 0), tokenizer)


def test_pieces_show_text_and_special_tokens(make_tokenizer: MakeTokenizer) -> None:
    assert shown(make_tokenizer(bos=True), render_hh(chat("\u00e9?", "\U0001f642", "a", "b"))) == [
        ("<s>\n\nHuman: \u00e9?\n\nAssistant:", False),
        (" \U0001f642", True),
        ("\n\nHuman: a\n\nAssistant:", False),
        (" b</s>", True),
    ]


def test_a_llama_like_tokenizer_keeps_its_spaces(llama_like: Tokenizer) -> None:
    assert shown(llama_like, render_hh(chat("Hi", "Sure!"))) == [
        ("<s> \n\nHuman: Hi\n\nAssistant:", False),
        (" Sure!</s>", True),
    ]


def test_a_character_split_between_two_runs_goes_to_the_later_one(
    make_tokenizer: MakeTokenizer,
) -> None:
    tokenizer = make_tokenizer()
    tokens = np.asarray(tokenizer.encode_batch(["a\u00e9"])[0].ids, np.int32)
    document = Document(tokens, np.asarray([False, False, True]), 0)
    assert pieces(document, tokenizer) == [("a", False), ("\u00e9", True)]
