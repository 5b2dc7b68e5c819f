from functools import cache
from pathlib import Path

from benchmarks.house import (
    ARTICLES,
    QUESTIONS,
    Module,
    function_lengths,
    late_imports,
    opening_words,
    read_package,
)

SOURCE = Path(__file__).parents[1] / "src" / "alignctl"


@cache
def modules() -> list[Module]:
    return read_package(SOURCE)


def test_docstrings_of_functions_open_with_neither_a_wh_word_nor_an_article() -> None:
    """Under 3 %, for the statements that may begin so; ruff's D401 sees verbs alone."""
    words = opening_words(modules())
    others = [word for word in words if word in QUESTIONS | ARTICLES]
    assert len(words) > 1000
    assert len(others) < 0.03 * len(words), others


def test_no_function_has_more_than_60_lines() -> None:
    lengths = function_lengths(modules())
    assert len(lengths) > 1000
    assert max(lengths) <= 60


def test_imports_inside_functions_are_fewer_than_3_per_thousand_lines() -> None:
    assert 0 < late_imports(modules()) < 3
