import numpy as np
import pytest

from alignctl.evaluation.mt_bench.scores import CATEGORIES, Mark, category_rows, interval, summarize

LLAMA_RLHF = (1.65, 4.0, 7.17, 1.70, 3.30, 5.50, 5.75, 4.75)
"""A column of the table that ChatLearn's tutorial printed, whose Avg was 4.22."""


def test_the_average_is_that_of_the_tutorials_table() -> None:
    marks = [
        Mark(n, name, x) for n, (name, x) in enumerate(zip(CATEGORIES, LLAMA_RLHF, strict=True))
    ]
    found = summarize(marks)
    assert found.categories == dict(zip(CATEGORIES, LLAMA_RLHF, strict=True))
    assert found.average == pytest.approx(4.2275)


def test_marks_that_are_missing_are_counted_and_in_no_mean() -> None:
    """Writing: (4 + 8) / 2; math: 3; all: (4 + 8 + 3) / 3, as FastChat has it."""
    marks = [
        Mark(1, "writing", 4.0),
        Mark(1, "writing", 8.0),
        Mark(2, "writing", None),
        Mark(3, "math", 3.0),
        Mark(4, "stem", None),
    ]
    found = summarize(marks)
    assert found.categories == {"math": 3.0, "stem": None, "writing": 6.0}
    assert found.average == 5.0
    assert (found.num_marks, found.num_missing) == (5, 2)


def test_the_interval_is_that_of_the_normal_distribution_when_questions_are_many() -> None:
    """Of n independent means, 1.96 standard errors to either side."""
    values = np.random.default_rng(1).uniform(1, 10, 400)
    found = interval([Mark(n, "writing", float(x)) for n, x in enumerate(values)])
    assert found is not None
    error = values.std() / np.sqrt(len(values))
    assert found == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.1 * error
    )


def test_two_turns_of_a_question_are_drawn_together() -> None:
    """Were equal turns independent, the interval would be narrower by the root of two."""
    values = np.random.default_rng(1).uniform(1, 10, 200)
    once = [Mark(n, "writing", float(x)) for n, x in enumerate(values)]
    assert interval([*once, *once]) == pytest.approx(interval(once))


def test_the_interval_is_the_same_every_time_and_none_of_one_question() -> None:
    marks = [Mark(n, "math", float(n)) for n in range(1, 9)]
    assert interval(marks) == interval(marks)
    assert interval([Mark(1, "math", 2.0), Mark(1, "math", 3.0)]) is None
    assert interval([]) is None
    assert interval([Mark(n, "math", 3.0) for n in range(5)]) == (3.0, 3.0)


def test_the_table_has_the_tutorials_rows_and_a_column_for_each_model() -> None:
    marks = [
        Mark(n, name, x) for n, (name, x) in enumerate(zip(CATEGORIES, LLAMA_RLHF, strict=True))
    ]
    other = [Mark(1, "coding", 2.05), Mark(2, "poetry", None)]
    rows = category_rows({"rlhf": summarize(marks), "a|b": summarize(other)})
    assert list(rows) == [
        *("Coding", "Extraction", "Humanities", "Math", "Reasoning", "Roleplay", "STEM"),
        *("Writing", "Poetry", "Avg", "95% interval"),
    ]
    assert rows["Coding"] == ["1.65", "2.05"]
    assert rows["Poetry"] == ["-", "-"]
    assert rows["Avg"] == ["4.23", "2.05"]
    assert rows["95% interval"][1] == "-"
    assert rows["95% interval"][0].startswith("[")
