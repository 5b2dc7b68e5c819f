"""Tokens and masks, written down by hand for tokenizers whose tokens are known."""

import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

from alignctl.config.data import Truncation
from alignctl.data.rows.schemas import Rendered
from alignctl.data.text.masks import Encoded, encode, share_prompt, truncate, truncate_answers
from alignctl.data.text.templates import Renderer, render_hh
from alignctl.data.tokenizer import Tokenizer
from tests.data.conftest import MakeTokenizer
from tests.data.test_templates import CHATML, LLAMA2, MARKED, chat

BOS, EOS = 1, 2


def shown(tokenizer: Tokenizer, rendered: Rendered) -> str:
    """The document's tokens, each learned one between brackets."""
    (document,) = encode([rendered], tokenizer)
    names = [tokenizer.backend.id_to_token(i) for i in document.tokens.tolist()]
    pairs = zip(names, document.supervised.tolist(), strict=True)
    return "".join(f"[{name}]" if learned else name for name, learned in pairs)


def own(text: str, *spans: tuple[int, int]) -> Rendered:
    return Rendered(text, spans, append_eos=True)


def test_the_response_and_one_eos_are_learned(make_tokenizer: MakeTokenizer) -> None:
    assert shown(make_tokenizer(), own("q:ab", (2, 4))) == "q:[a][b][</s>]"


def test_one_bos_is_put_first_when_the_tokenizer_adds_it(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(bos=True)
    assert shown(tokenizer, own("qa", (1, 2))) == "<s>q[a][</s>]"
    assert shown(tokenizer, own("<s>qa", (4, 5))) == "<s>q[a][</s>]"
    assert shown(tokenizer, own("<s><s>qa", (7, 8))) == "<s>q[a][</s>]"
    assert shown(make_tokenizer(), own("<s>qa", (4, 5))) == "<s>q[a][</s>]"


def test_an_eos_in_the_text_is_not_doubled(make_tokenizer: MakeTokenizer) -> None:
    assert shown(make_tokenizer(), own("qa</s>", (1, 6))) == "q[a][</s>]"


def test_a_token_across_the_start_of_a_turn_is_parted(make_tokenizer: MakeTokenizer) -> None:
    """The text "A: Sure" is A, :, " S", u, r, e. A prompt "A: " is A, :, " ", so the model goes on
    after " ": with S, which it has to learn there."""
    tokenizer = make_tokenizer(merges=[("\u0120", "S")])
    assert shown(tokenizer, own("A: Sure", (3, 7))) == "A:\u0120[S][u][r][e][</s>]"
    assert shown(tokenizer, own("A: Sure", (2, 7))) == "A:[\u0120S][u][r][e][</s>]"
    parted, whole = encode([own("A: Sure", (3, 7)), own("A: Sure", (2, 7))], tokenizer)
    assert (parted.is_parted, whole.is_parted) == (True, False)


def test_a_token_across_the_end_of_a_turn_is_not_learned(make_tokenizer: MakeTokenizer) -> None:
    r""" "a.\nb." with the turns "a." and "b." becomes a, ".\n", b, "." """
    tokenizer = make_tokenizer(merges=[(".", "\u010a")])
    assert shown(tokenizer, own("a.\nb.", (0, 2), (3, 5))) == "[a].\u010a[b][.][</s>]"


def test_all_bytes_of_a_character_share_its_turn(make_tokenizer: MakeTokenizer) -> None:
    """U+00E9 is the bytes C3 A9, which ByteLevel writes as U+00C3 and U+00A9."""
    tokenizer = make_tokenizer()
    assert shown(tokenizer, own("\u00e9\u00e9", (1, 2))) == ("\u00c3\u00a9[\u00c3][\u00a9][</s>]")


def test_hh_turns_are_all_learned_and_eos_comes_once(make_tokenizer: MakeTokenizer) -> None:
    text = shown(make_tokenizer(), render_hh(chat("q", "ab", "r", "c")))
    newlines, space = "\u010a\u010a", "\u0120"
    assert text == (
        f"{newlines}Human:{space}q{newlines}Assistant:[{space}][a][b]"
        f"{newlines}Human:{space}r{newlines}Assistant:[{space}][c][</s>]"
    )


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            CHATML,
            "<s><|user|>q</s>\u010a<|assistant|>[a][</s>]\u010a"
            "<|user|>r</s>\u010a<|assistant|>[b][</s>]",
        ),
        (MARKED, "<s>U:qA:[a][</s>]U:rA:[b][</s>]"),
        (
            LLAMA2,
            "<s>[INST]\u0120q\u0120[/INST][\u0120][a][\u0120][</s>]"
            "<s>[INST]\u0120r\u0120[/INST][\u0120][b][\u0120][</s>]",
        ),
    ],
)
def test_chat_templates_give_one_leading_bos_and_learn_every_eos(
    make_tokenizer: MakeTokenizer, template: str, expected: str
) -> None:
    """CHATML writes no BOS, MARKED and LLAMA2 do: the document has one either way."""
    tokenizer = make_tokenizer(bos=True, chat_template=template)
    assert shown(tokenizer, Renderer("auto", tokenizer)(chat("q", "a", "r", "b"))) == expected


def test_a_llama_like_tokenizer_learns_its_first_word(llama_like: Tokenizer) -> None:
    rendered = render_hh(chat("Hi!", "Sure!"))
    assert shown(llama_like, rendered) == (
        "<s>\u2581<0x0A><0x0A>Human:\u2581Hi!<0x0A><0x0A>Assistant:[\u2581Sure][!][</s>]"
    )


def test_pad_is_learned_like_any_other_token(make_tokenizer: MakeTokenizer) -> None:
    """Also when pad is EOS: nothing is masked by comparing ids."""
    tokenizer = make_tokenizer(pad_token="</s>")
    assert tokenizer.pad_id == tokenizer.eos_id
    assert shown(tokenizer, own("qa", (1, 2))) == "q[a][</s>]"
    assert shown(make_tokenizer(), own("q<pad>", (1, 6))) == "q[<pad>][</s>]"


def test_a_document_without_a_learned_turn_is_empty(make_tokenizer: MakeTokenizer) -> None:
    assert shown(make_tokenizer(bos=True), own("abc")) == ""
    assert shown(make_tokenizer(bos=True), own("")) == ""


@given(st.text("0 1.\n\u00e9", max_size=30), st.data())
def test_a_token_is_learned_when_its_last_character_is(text: str, data: st.DataObject) -> None:
    """A prompt keeps its own tokens: where one would go on into the answer, they part there."""
    tokenizer = _trained()
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    rendered = Rendered(text, ((start, end),), append_eos=False)
    (document,) = encode([rendered], tokenizer)
    ends, is_joined = _ends(tokenizer, text, start)
    if is_joined and start < end:
        rest, _ = _ends(tokenizer, text[start:], 0)
        ends = [*_ends(tokenizer, text[:start], 0)[0], *(start + each for each in rest)]
    expected = [start < each <= end for each in ends]
    while expected and not expected[-1]:
        expected.pop()
    assert document.supervised.tolist() == expected


def _ends(tokenizer: Tokenizer, text: str, place: int) -> tuple[list[int], bool]:
    """The last characters of a text's tokens, and whether one of them lies on both sides."""
    offsets = tokenizer.encode_batch([text])[0].offsets
    return [end for _, end in offsets], any(first < place < end for first, end in offsets)


@lru_cache
def _trained() -> Tokenizer:
    """A byte-level BPE trained on a few lines, so that tokens straddle words and lines."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["0 1\n0 1 \u00e9\u00e9 00 0."] * 4, trainer)
    return Tokenizer(Path(), backend, {"eos_token": "</s>"}, None, 0, None, False, {})


def document(pattern: str) -> Encoded:
    """Tokens 10, 11, ...; a capital is learned; a leading ^ is BOS."""
    tokens = [BOS if c == "^" else 10 + i for i, c in enumerate(pattern)]
    return Encoded(np.asarray(tokens, np.int32), np.asarray([c.isupper() for c in pattern]))


@pytest.mark.parametrize(
    ("pattern", "window", "rule", "expected"),
    [
        ("^ppRRE", 6, "keep_response", "^ppRRE"),  # fits
        ("^pqrRRE", 5, "keep_response", "^rRRE"),  # the prompt loses its start
        ("pqrRRE", 4, "keep_response", "rRRE"),  # without BOS
        ("^pAqrRRE", 6, "keep_response", "^qrRRE"),  # an earlier answer goes with its prompt
        ("^pqrABCDEFGHI", 9, "keep_response", "^qrABCDEF"),  # room 8: 2 of context, 6 of answer
        ("^pABCDEFGHI", 9, "keep_response", "^pABCDEFG"),  # only 1 token of context there
        ("ABCDEFGHI", 4, "keep_response", "ABCD"),  # no context at all
        ("^pqrABCD", 5, "left", "^ABCD"),
        ("^pqrABCD", 6, "right", "^pqrAB"),
        ("^pqABrsCD", 6, "right", "^pqAB"),  # an unlearned tail is of no use
        ("^pqrABCD", 4, "right", ""),  # nothing learned is left
        ("^pqrABCD", 5, "drop", ""),
    ],
)
def test_truncation_keeps_what_its_rule_says(
    pattern: str, window: int, rule: Truncation, expected: str
) -> None:
    whole = document(pattern)
    cut = truncate(whole, window, rule, BOS)
    names = {10 + i: c for i, c in enumerate(pattern)} | {BOS: "^"}
    assert "".join(names[t] for t in cut.tokens.tolist()) == expected
    assert cut.supervised.tolist() == [c.isupper() for c in expected]
    assert cut.has_target == any(c.isupper() for c in expected[1:])


@given(
    st.lists(st.booleans(), min_size=1, max_size=40),
    st.integers(3, 12),
    st.sampled_from(["keep_response", "left", "right"]),
    st.booleans(),
)
def test_truncation_never_exceeds_the_window_and_keeps_bos_and_a_learned_tail(
    mask: list[bool], window: int, rule: Truncation, has_bos: bool
) -> None:
    pattern = "^" * has_bos + "".join("A" if learned else "p" for learned in mask) + "E"
    cut = truncate(document(pattern), window, rule, BOS)
    assert len(cut.tokens) <= window
    if len(cut.tokens) > 1:
        assert bool(cut.supervised[-1])
        assert (cut.tokens[0] == BOS) == has_bos
    if rule != "right":
        assert cut.has_target


def test_answers_follow_the_same_tokens_of_their_prompt(make_tokenizer: MakeTokenizer) -> None:
    """ " S" would straddle the end of the prompt "A: ", " N" would not: both follow A, :, " "."""
    tokenizer = make_tokenizer(merges=[("\u0120", "S")])
    encoded = encode([own("A: So", (3, 5)), own("A: No", (3, 5))], tokenizer)
    answers, prompt = share_prompt(encoded)
    assert prompt == 3
    assert [answer.supervised.tolist() for answer in answers] == [
        [False, False, False, True, True, True]
    ] * 2
    assert [answer.is_parted for answer in answers] == [True, False]


def test_answers_that_begin_alike_are_learned_from_their_beginning() -> None:
    """Not from where they part: the first tokens of an answer are no part of the prompt."""
    answers, prompt = share_prompt([document("^ppABC"), document("^ppABCD")])
    assert prompt == 3
    assert [answer.supervised.sum() for answer in answers] == [3, 4]


def answers_of(*patterns: str) -> list[Encoded]:
    """Each character is its own token; the capitals at the end are the answer."""
    return [
        Encoded(
            np.asarray([BOS if c == "^" else ord(c) for c in pattern], np.int32),
            np.asarray([c.isupper() for c in pattern]),
        )
        for pattern in patterns
    ]


def names_of(documents: list[Encoded]) -> list[str]:
    return [
        "".join("^" if t == BOS else chr(t) for t in document.tokens.tolist())
        for document in documents
    ]


@pytest.mark.parametrize(
    ("patterns", "window", "rule", "expected"),
    [
        (["^pqrA", "^pqrBC"], 6, "drop", ["^pqrA", "^pqrBC"]),  # fits
        (["^pqrA", "^pqrBC"], 5, "drop", []),  # one does not
        (["^pqrA", "^pqrBC"], 5, "keep_response", ["^qrA", "^qrBC"]),  # both lose p
        (["pqrA", "pqrBC"], 4, "keep_response", ["qrA", "qrBC"]),  # without BOS
        # Room 8: an answer of 9 leaves 2 of context and loses its end, the other one stays whole.
        (["^pqrA", "^pqrBCDEFGHIJ"], 9, "keep_response", ["^qrA", "^qrBCDEFG"]),
        (["^A", "^BCDEF"], 4, "keep_response", ["^A", "^BCD"]),  # no prompt to cut
        (["^pqrA", "^pqrBC"], 5, "left", ["^qrA", "^qrBC"]),
        (["^pqrA", "^pqrBCDE"], 5, "left", ["^A", "^BCDE"]),
        (["^pqrA", "^pqrBCDE"], 4, "left", []),  # B would have to go, but not A
        (["^pqrA", "^pqrBC"], 5, "right", ["^pqrA", "^pqrB"]),
        (["^pqrA", "^pqrBC"], 4, "right", []),  # the prompt fills the window
    ],
)
def test_answers_keep_the_same_part_of_their_prompt(
    patterns: list[str], window: int, rule: Truncation, expected: list[str]
) -> None:
    whole = answers_of(*patterns)
    prompt = int(whole[0].supervised.argmax())
    cut = truncate_answers(whole, prompt, window, rule, BOS)
    assert names_of(cut) == expected
    assert all(
        document.supervised.tolist() == [c.isupper() for c in name]
        for document, name in zip(cut, expected, strict=True)
    )


@example(0, [1, 4], 3, "keep_response", False)
@given(
    st.integers(0, 12),
    st.lists(st.integers(1, 12), min_size=2, max_size=4),
    st.integers(3, 12),
    st.sampled_from(["keep_response", "left", "right", "drop"]),
    st.booleans(),
)
def test_whatever_is_cut_answers_follow_the_same_tokens_and_fit(
    prompt: int, answers: list[int], window: int, rule: Truncation, has_bos: bool
) -> None:
    head = "^" * has_bos + "abcdefghijkl"[:prompt]
    patterns = [head + chr(ord("A") + i) * length for i, length in enumerate(answers)]
    cut = names_of(truncate_answers(answers_of(*patterns), len(head), window, rule, BOS))
    assert len(cut) in (0, len(patterns))
    assert len({name.rstrip("ABCD") for name in cut}) <= 1
    for name, pattern in zip(cut, patterns, strict=False):
        assert len(name) <= window
        assert name.startswith("^") == has_bos
        assert pattern.lstrip("^").startswith(name.lstrip("^")) or rule != "right"
    if max(map(len, patterns)) <= window:
        assert cut == patterns
    elif rule == "keep_response":
        # A first token is never predicted, so one alone can only be dropped.
        assert bool(cut) == (len(head) > 0 or min(answers) > 1)


def test_a_llama_like_tokenizer_with_llama_2s_template(llama_like: Tokenizer) -> None:
    """Brackets, slashes and some letters are no tokens here, so they fall back to bytes."""
    tokenizer = replace(llama_like, chat_templates={"default": LLAMA2})
    text = shown(tokenizer, Renderer("auto", tokenizer)(chat("Hi", "Sure", "Hi", "Hi!")))
    text = re.sub("<0x(..)>", lambda byte: chr(int(byte[1], 16)), text).replace("\u2581", "_")
    assert text == ("<s>_[INST]_Hi_[/INST][_Sure][_][</s>]<s>_[INST]_Hi_[/INST][_Hi][!][_][</s>]")
