import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignctl.evaluation.mt_bench.grading import Grade, Verdict, rating, verdict


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("Well done. Rating: [[5]]", Grade(5.0)),
        ("[[7.5]]", Grade(7.5)),
        ("[[ 10 ]]", Grade(10.0)),
        ("[[8/10]]", Grade(8.0)),
        ("At first [[9]]; but it is wrong: [[2]]", Grade(2.0)),
        ("Rating: 6", Grade(6.0)),
        ("**Rating**: 6/10", Grade(6.0)),
        ("Rating: [3]", Grade(3.0)),
        ("[[0]]", Grade(None, "out_of_range")),
        ("[[11]]", Grade(None, "out_of_range")),
        ("[[-3]]", Grade(None, "out_of_range")),
        ("Rating: 100", Grade(None, "out_of_range")),
        ("", Grade(None, "no_rating")),
        ("[[rating]]", Grade(None, "no_rating")),
        ("A rating of 1 to 10 is asked for.", Grade(None, "no_rating")),
        ("Rating: 1 to 10", Grade(None, "no_rating")),
        ("As [4] says, it is fine.", Grade(None, "no_rating")),
        ("[[NaN]] [[1e9]] [[inf]]", Grade(None, "no_rating")),
    ],
)
def test_a_rating_is_read(text: str, grade: Grade) -> None:
    assert rating(text) == grade


@given(st.text(), st.integers(1, 10))
def test_the_last_word_counts_whatever_was_said_before(before: str, score: int) -> None:
    assert rating(f"{before} [[{score}]]") == Grade(float(score))


@given(st.text())
def test_every_text_means_a_rating_in_range_or_a_problem(text: str) -> None:
    found = rating(text)
    assert (found.score is None) == (found.problem is not None)
    assert found.score is None or 1 <= found.score <= 10


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A is better: [[A]]", "A"),
        ("[[B]]", "B"),
        ("[[C]]", "tie"),
        ("[[A]] would be unfair, so [[B]]", "B"),
        ("[[a]]", None),
        ("[[D]]", None),
        ("", None),
    ],
)
def test_a_verdict_is_read(text: str, expected: Verdict | None) -> None:
    assert verdict(text) == expected
