import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignctl.corpus.cleaning.characters import Cleaner, Rules
from alignctl.errors import UserError

# What PAI-Megatron-Patch's list keeps, written out: see reference sections of the tutorial.
PAI_PUNCTUATION = ".\uff0c ,-\u3002%\u300a*\u300b/\u2022\u3001&\uff06(\u2014)\uff08+\uff09\uff1a"
PAI_PUNCTUATION += "\uff1f!\uff01\u201c\u201d\u00b7"
WITHOUT_SURROGATES = st.text(st.characters(exclude_categories=["Cs"]))
PIECES = st.sampled_from(
    [
        "http://",
        "https://a.b/c",
        "www.",
        "x.org",
        " ",
        "\n",
        "\n\n",
        "\u200b",
        "a@b.co",
        ";",
        "\u4e2d",
    ]
)
TEXTS = st.one_of(WITHOUT_SURROGATES, st.lists(PIECES).map("".join))
POLICIES = st.sampled_from(["keep", "pai", r"[0-9a-zA-Z\n .,:/@<>-]", "[^;]"])


def pai(text: str) -> str:
    """The tutorial's program in its own order: links, runs of spaces, characters, the ends."""
    text = re.sub(r"https?://(?:[a-zA-Z0-9!]|[$-_])+", "", text)
    text = re.sub(" +", " ", text)
    kept = string.digits + string.ascii_letters + PAI_PUNCTUATION
    return "".join(c for c in text if c in kept or "\u4e00" <= c <= "\u9fa5").strip()


@pytest.mark.parametrize(
    "text",
    [
        "Hello,  world: see http://example.com/a?b=c for more!",
        "\u4ed6\u8bf4\uff1a\u201c\u597d\u3002\u201d\n\u4e0b\u4e00\u884c; 'quoted' [1]",
        "http://a.cn/b\u3002\u4e0b\u4e00\u53e5 https://x.org/~user#top",
        "caf\u00e9\u3042 100% A&B",
        "",
    ],
)
def test_the_tutorials_policy_gives_what_its_program_gives(text: str) -> None:
    assert Cleaner(Rules("pai")).clean(text) == pai(text)


@given(TEXTS)
def test_the_tutorials_policy_never_differs_but_in_runs_of_spaces(text: str) -> None:
    """That program squeezes spaces before it deletes characters, which may join others."""
    assert Cleaner(Rules("pai")).clean(text) == re.sub(" +", " ", pai(text)).strip()


@given(TEXTS, POLICIES, st.booleans(), st.booleans(), st.booleans())
def test_what_is_clean_stays_as_it_is(
    text: str, policy: str, urls: bool, pii: bool, white_space: bool
) -> None:
    cleaner = Cleaner(Rules(policy, urls, pii, white_space))
    once = cleaner.clean(text)
    assert cleaner.clean(once) == once


@given(TEXTS, st.booleans(), st.booleans())
def test_no_character_outside_the_policy_survives(text: str, urls: bool, pii: bool) -> None:
    kept = r"[0-9a-zA-Z\n .,:/@<>-]"
    assert re.fullmatch(f"{kept}*", Cleaner(Rules(kept, urls, pii)).clean(text))


@given(TEXTS, POLICIES)
def test_no_character_inside_the_policy_is_lost(text: str, policy: str) -> None:
    """Without links, all that changes besides is white space."""
    cleaner = Cleaner(Rules(policy, urls=False))
    alone = {c for c in set(text) if Cleaner(Rules(policy, white_space=False)).clean(c) == c}
    expected = [c for c in text if c in alone and not c.isspace()]
    assert [c for c in cleaner.clean(text) if not c.isspace()] == expected


@given(WITHOUT_SURROGATES)
def test_the_default_policy_keeps_every_letter_number_and_mark(text: str) -> None:
    import unicodedata

    wanted = [c for c in text if unicodedata.category(c)[0] in "LMNPS" and c not in "\ufffc\ufffd"]
    cleaned = Cleaner(Rules(urls=False)).clean(text)
    assert [c for c in cleaned if unicodedata.category(c)[0] in "LMNPS"] == wanted


def test_white_space_is_tidied_and_line_breaks_stay() -> None:
    text = " a \t b\u3000c \r\n d\r\r\r\r e\u2028f  "
    assert Cleaner(Rules()).clean(text) == "a b c\nd\n\ne\nf"


def test_white_space_can_be_left_alone() -> None:
    text = "def f():\n    return  1\n\n\n\n"
    assert Cleaner(Rules(white_space=False)).clean(text) == text


def test_a_link_goes_and_the_full_stop_behind_it_stays() -> None:
    text = "See https://a.org/b?c=d#e. And (www.x.de), ok"
    assert Cleaner(Rules()).clean(text) == "See . And (), ok"


def test_what_a_removed_character_joins_is_looked_at_again() -> None:
    assert Cleaner(Rules()).clean("a ht\u200btp://x.org b") == "a b"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("mail a.b+c@x-y.co.uk now", "mail <EMAIL> now"),
        ("at 192.168.0.1.", "at <IP>."),
        ("version 1.2.3.4.5 and 300.1.1.1", "version 1.2.3.4.5 and 300.1.1.1"),
        ("card 4111 1111 1111 1111!", "card <CARD>!"),
        ("not one: 4111 1111 1111 1112", "not one: 4111 1111 1111 1112"),
        ("id 11010519491231002X", "id <ID>"),
        ("call +49 30 901820 or (212) 555-0123", "call <PHONE> or <PHONE>"),
        ("\u624b\u673a 13800138000", "\u624b\u673a <PHONE>"),
        ("in 2010-2015, 1,000,000 of 12345678", "in 2010-2015, 1,000,000 of 12345678"),
    ],
)
def test_addresses_and_numbers_are_masked(text: str, masked: str) -> None:
    assert Cleaner(Rules(pii=True)).clean(text) == masked


def test_a_misspelt_policy_names_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        Cleaner(Rules("keeep"))
    assert "neither keep, pai, nor a character class" in caught.value.message
    assert "did you mean keep?" in (caught.value.hint or "")


@pytest.mark.parametrize("policy", ["[z-a]", "[a]b]", "[", "[]", "[a"])
def test_a_class_that_is_none_is_refused(policy: str) -> None:
    with pytest.raises(UserError, match="--policy"):
        Cleaner(Rules(policy))
