from hypothesis import given
from hypothesis import strategies as st

from alignctl.reporting import preview

PIECES = [("<s>", False), ("Human: hi\n", False), ("hel", True), ("lo", True), ("</s>", True)]


def test_learned_pieces_stand_in_brackets_on_plain_output() -> None:
    assert preview.plain(PIECES) == "<s>Human: hi\\n\n[[hello</s>]]"


def test_learned_pieces_are_coloured_on_a_terminal() -> None:
    text = preview.render(PIECES)
    coloured = [
        text.plain[span.start : span.end] for span in text.spans if "green" in str(span.style)
    ]
    assert coloured == ["hello</s>"]


def test_control_characters_are_shown_and_not_sent() -> None:
    assert preview.visible("\x1b[2J\ta\u200b\u00e9") == "\\x1b[2J\\ta\\u200b\u00e9"


@given(st.lists(st.tuples(st.text(), st.booleans())))
def test_whatever_the_text_only_printable_characters_and_new_lines_come_out(
    pieces: list[tuple[str, bool]],
) -> None:
    for shown in (preview.plain(pieces), preview.render(pieces).plain):
        assert all(character.isprintable() or character == "\n" for character in shown)
